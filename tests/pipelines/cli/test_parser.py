"""Words to arguments, without a model."""

from pathlib import Path

import pytest

from pipelines.cli import parser


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        (["a cat holding a banana"], "a cat holding a banana"),
        (["a", "cat", "holding", "a", "banana"], "a cat holding a banana"),
        (["a", "cat", "-m", "folder", "holding", "--steps", "3", "a", "banana"], "a cat holding a banana"),
        (["generate", "train"], "train"),
        (["--", "train"], "train"),
        (["generate", "doctor"], "doctor"),
        (["--", "doctor"], "doctor"),
        (["generate", "generate"], "generate"),
        (["the", "doctor"], "the doctor"),
        (["-m", "folder", "doctor"], "doctor"),
        (["generate", "vocabulary"], "vocabulary"),
        (["trains"], "trains"),
        (["the", "train"], "the train"),
        (["a", "--", "-5", "degrees", "--steps"], "a -5 degrees --steps"),
        (["-"], "-"),
    ],
)
def test_words_become_the_prompt(line: list[str], prompt: str) -> None:
    args = parser.parse(line)
    assert (args.command, " ".join(args.words)) == ("generate", prompt)


def test_every_option_is_read() -> None:
    line = "a cat -m folder --negative blurry --size 512x768 --seed 7 -n 4 --steps 30 --guidance-scale 7.5"
    line += " --sampler dpmpp_2m --karras --prompt-syntax a1111 --clip-skip 1 --device cpu --dtype float32 -o out.png"
    line += " --deep-cache 3 --merge-tokens 0.5 --guidance-interval 0.3,20"
    line += " --lora one.safetensors --lora two.safetensors:0.5"
    args = vars(parser.parse(line.split()))
    assert {name: value for name, value in args.items() if value not in (None, False, [])} == {
        "loras": [("one.safetensors", 1.0), ("two.safetensors", 0.5)],
        "command": "generate",
        "words": ["a", "cat"],
        "model": "folder",
        "negative_prompt": "blurry",
        "size": (512, 768),
        "seed": 7,
        "count": 4,
        "num_inference_steps": 30,
        "guidance_scale": 7.5,
        "sampler": "dpmpp_2m",
        "grid": "karras",
        "prompt_syntax": "a1111",
        "clip_skip": 1,
        "deep_cache": 3,
        "merge_tokens": 0.5,
        "guidance_interval": (0.3, 20.0),
        "device": "cpu",
        "dtype": "float32",
        "output": "out.png",
    }


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["a", "--size", "500x"], "write width x height, such as 512x768"),
        (["a", "--size", "513x512"], "multiples of 8, such as 512x512"),
        (["a", "--size", "0x512"], "multiples of 8, such as 8x512"),
        (["a", "-n", "0"], "'0' is not a whole number of at least 1"),
        (["a", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["a", "--steps", "3.5"], "'3.5' is not a whole number of at least 1"),
        (["a", "--seed", "-1"], "'-1' is not a whole number from 0 to 4294967295"),
        (["a", "--seed", str(2**32)], "from 0 to 4294967295"),
        (["a", "--guidance-scale", "nan"], "'nan' is not a number such as 7.5"),
        (["a", "--clip-skip", "-1"], "at least 0"),
        (["a", "--deep-cache", "0"], "'0' is not a whole number of at least 1"),
        (["a", "--merge-tokens", "0.8"], "'0.8' is not a share from 0 to 0.75"),
        (["a", "--merge-tokens", "nan"], "a share from 0 to 0.75"),
        (["a", "--guidance-interval", "20,0.3"], "two noise levels LOW,HIGH such as 0.3,20"),
        (["a", "--guidance-interval", "5"], "LOW,HIGH"),
        (["a", "--guidance-interval", "1,2,3"], "LOW,HIGH"),
        (["a", "--guidance-interval", "a,b"], "LOW,HIGH"),
        (["a", "--guidance-interval", "nan,2"], "LOW,HIGH"),
        (["a", "-o", "out.jpg"], "name it out.png"),
        (["a", "--prompt-syntax", "latex"], "choose from"),
        (["a", "--stepz", "3"], "a prompt that begins with - goes behind --"),
        (["a", "--step", "3"], "unrecognized"),  # no abbreviations: they would change meaning as options are added
        (["generate"], "say what to draw"),
        (["--json"], "say what to draw"),
        (["doctor", "who"], "To draw a picture of the word: ldm generate doctor (see ldm doctor --help)"),
        (["train", "at", "night"], "To draw a picture of the word: ldm generate train"),
        (["train", "run", "--stage", "unet"], "'unet' is no stage: there are classifier, autoencoder, text, denoiser"),
        (["train", "run", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["vocabulary", "--modle", "folder"], "unrecognized"),
    ],
)
def test_bad_arguments_get_one_line_and_status_2(
    line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse(line)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("ldm: ")
    assert words in err
    assert err.count("\n") == 1


def test_options_of_the_other_commands() -> None:
    args = parser.parse(["train", "--stage", "text,denoiser", "run.toml", "--stage", "classifier", "--steps", "5"])
    assert (args.command, args.run, args.steps) == ("train", "run.toml", 5)
    assert args.stage == ["text", "denoiser", "classifier"]
    assert (args.output, args.fresh, args.list, args.no_progress) == (None, False, False, False)
    args = parser.parse(["vocabulary", "-m", "folder", "--json"])
    assert (args.command, args.model, args.json) == ("vocabulary", "folder", True)
    assert parser.parse(["vocabulary"]).model is None
    assert parser.parse(["doctor", "--json"]).command == "doctor"


@pytest.mark.parametrize("command", ["generate", "doctor", "evaluate", "train", "vocabulary"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for line in (["help", command], [command, "--help"]):
        with pytest.raises(SystemExit) as stop:
            parser.parse(line)
        assert not stop.value.code
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert shown[0].startswith('usage: ldm "PROMPT"' if command == "generate" else f"usage: ldm {command} ")


@pytest.mark.parametrize("line", [[], ["help"], ["--help"], ["-h"], ["generate", "--help"]])
def test_help_shows_the_documented_commands(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser.parse(line)
    out, err = capsys.readouterr()
    assert (stop.value.code or 0, err) == (0, "")
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
    shell = [line.strip() for line in readme.split("```sh")[1].split("```")[0].splitlines() if line.strip()]
    assert len(shell) >= 3
    for command in shell:
        assert command in out or command == "ldm doctor"
    assert all(f"\n  {command} " in out for command in parser.PARSERS)
