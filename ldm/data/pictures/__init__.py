"""Pictures of one's own with their captions: found, looked through, cut into batches of one shape, cached.

items, report = ldm.data.pictures.scan.scan(DataConfig("my/pictures"))
pictures = ldm.data.pictures.set.Pictures(items, config, size=512, seed=0, batch=4)
pictures.example(17).image
"""
