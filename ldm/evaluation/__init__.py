"""How well a model draws what captions say: a checker of pictures, its own validation, and reports with intervals."""
