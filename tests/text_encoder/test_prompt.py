import logging
import subprocess
import sys

import pytest

from text_encoder.prompt import ROUND, SQUARE, note_long, parse, split

COMMA = 1000


def words(text: str) -> list[int]:
    """A stand-in for the tokenizer: one token for each number, 1000 for a comma."""
    return [COMMA if word == "," else int(word) for word in text.split()]


def numbers(start: int, stop: int) -> str:
    return " ".join(map(str, range(start, stop)))


def ids(chunks) -> list[list[int]]:
    return [[token for token, _ in chunk] for chunk in chunks]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("", [[]]),
        ("a cat", [[("a cat", 1.0)]]),
        ("(a)", [[("a", 1.1)]]),
        ("((a))", [[("a", 1.21)]]),
        ("[a]", [[("a", 1 / 1.1)]]),
        ("([a])", [[("a", 1.0)]]),
        ("a (b:1.3) c", [[("a ", 1.0), ("b", 1.3), (" c", 1.0)]]),
        ("(a (b:1.5):2)", [[("a ", 2.0), ("b", 3.0)]]),
        ("(a : +1.5 )", [[("a ", 1.5)]]),
        ("(a:-.5)", [[("a", -0.5)]]),
        ("(a:0)", [[("a", 0.0)]]),
        ("(a:b)", [[("a:b", 1.1)]]),
        ("[a:1.5]", [[("a:1.5", 1 / 1.1)]]),
        ("a:1.5) b", [[("a:1.5) b", 1.0)]]),
        ("(a (b", [[("a ", 1.1), ("b", 1.21)]]),
        ("[a (b", [[("a ", 1 / 1.1), ("b", 1.0)]]),
        ("a) b] c", [[("a) b] c", 1.0)]]),
        (r"\(a\) \[b\] \\ c", [[(r"(a) [b] \ c", 1.0)]]),
        (r"(a\):1.2)", [[("a)", 1.2)]]),
        (r"a\b", [[("ab", 1.0)]]),
        ("(a)(b)", [[("ab", 1.1)]]),
        ("(a:1.3)(b:1.3)c", [[("ab", 1.3), ("c", 1.0)]]),
        ("(a] b)", [[("a] b", 1.1)]]),
        ("()", [[]]),
        ("a BREAK b", [[("a ", 1.0)], [(" b", 1.0)]]),
        ("a\nBREAK\n(b BREAK c:1.2)", [[("a\n", 1.0)], [("\n", 1.0), ("b ", 1.2)], [(" c", 1.2)]]),
        ("aBREAK break BREAKS", [[("aBREAK break BREAKS", 1.0)]]),
        ("BREAK a BREAK", [[], [(" a ", 1.0)], []]),
    ],
)
def test_weights_and_breaks(prompt, sections):
    found = parse(prompt)
    assert [[text for text, _ in section] for section in found] == [[text for text, _ in own] for own in sections]
    assert [weight for section in found for _, weight in section] == pytest.approx(
        [weight for section in sections for _, weight in section], rel=1e-12
    )


@pytest.mark.parametrize(
    ("prompt", "text", "place"), [("a (b:1.2.3)", "1.2.3", 5), ("(x: . )", ".", 4), ("(x:" + "9" * 400 + ")", "999", 3)]
)
def test_a_weight_that_is_no_number_is_located(prompt, text, place):
    with pytest.raises(ValueError, match=rf"'{text}.*' at character {place} .*word:1\.3"):
        parse(prompt)


@pytest.mark.parametrize("bracket", ["(", "["])
def test_too_many_open_brackets(bracket):
    assert parse(bracket * 100) == [[]]
    with pytest.raises(ValueError, match=r"opens over 100 brackets .*backslash"):
        parse(bracket * 101)


@pytest.mark.parametrize("count", [0, 1, 74, 75, 76, 150, 151])
def test_plain_prompts_are_cut_every_75_tokens(count):
    chunks = split(numbers(0, count), words, 75)
    assert [len(chunk) for chunk in chunks] == ([75] * (count // 75) + [count % 75] * (count % 75 > 0) or [0])
    assert [token for chunk in chunks for token, _ in chunk] == list(range(count))
    assert {weight for chunk in chunks for _, weight in chunk} <= {1.0}


def test_plain_prompts_are_literal():
    seen = []
    split("(a:1.3) BREAK [b] \\(", lambda text: seen.append(text) or [], 75)
    assert seen == ["(a:1.3) BREAK [b] \\("]


def test_parts_are_tokenised_alone_with_their_weights():
    seen = []
    chunks = split("1 (2 3:1.5) [4]", lambda text: seen.append(text) or words(text), 75, "a1111")
    assert seen == ["1 ", "2 3", " ", "4"]
    assert chunks == [[(1, 1.0), (2, 1.5), (3, 1.5), (4, SQUARE)]]
    assert split("(1)", words, 75, "a1111") == [[(1, ROUND)]]


@pytest.mark.parametrize(
    ("comma", "end"),
    [(74, 75), (73, 74), (60, 61), (55, 56), (54, 75), (0, 75), (75, 75), (None, 75)],
)
def test_a_full_chunk_ends_at_a_near_comma(comma, end):
    """`comma` is the place of the only comma in 90 tokens; place 75 is the first that does not fit."""
    tokens = list(range(90))
    if comma is not None:
        tokens[comma] = COMMA
    text = " ".join("," if token == COMMA else str(token) for token in tokens)
    assert ids(split(text, words, 75, "a1111", COMMA)) == [tokens[:end], tokens[end:]]
    assert ids(split(text, words, 75, "plain", COMMA)) == [tokens[:75], tokens[75:]]
    assert ids(split(text, words, 75, "a1111", None)) == [tokens[:75], tokens[75:]]


def test_a_comma_that_does_not_fit_starts_the_next_chunk():
    text = f"{numbers(0, 60)} , {numbers(61, 75)} , {numbers(76, 90)}"
    tokens = words(text)
    assert ids(split(text, words, 75, "a1111", COMMA)) == [tokens[:75], tokens[75:]]


def test_the_last_of_several_commas_counts_and_rest_fits_again():
    text = f"{numbers(0, 58)} , {numbers(59, 65)} , {numbers(66, 130)} , {numbers(131, 160)}"
    tokens = words(text)
    assert ids(split(text, words, 75, "a1111", COMMA)) == [tokens[:66], tokens[66:131], tokens[131:]]


def test_chunk_of_75_tokens_is_not_cut_at_its_comma():
    text = f"{numbers(0, 70)} , {numbers(71, 75)}"
    assert len(split(text, words, 75, "a1111", COMMA)) == 1


@pytest.mark.parametrize(
    ("prompt", "chunks"),
    [
        ("1 BREAK 2 3", [[1], [2, 3]]),
        ("BREAK 1", [[], [1]]),
        ("1 BREAK", [[1]]),
        ("1 BREAK BREAK 2", [[1], [], [2]]),
        ("BREAK", [[]]),
        ("", [[]]),
        (f"{numbers(0, 80)} BREAK 7", [list(range(75)), list(range(75, 80)), [7]]),
        (f"{numbers(0, 75)} BREAK 7", [list(range(75)), [7]]),
    ],
)
def test_breaks_start_chunks(prompt, chunks):
    assert ids(split(prompt, words, 75, "a1111", COMMA)) == chunks


def test_unknown_syntax():
    with pytest.raises(ValueError, match="'comfy' is unknown; use 'plain' or 'a1111'"):
        split("a", words, 75, "comfy")


def test_long_prompts_are_noted(caplog):
    prompts = [numbers(0, 75), numbers(0, 76), numbers(0, 151)]
    with caplog.at_level(logging.WARNING, "text_encoder"):
        note_long(prompts, [split(prompt, words, 75) for prompt in prompts], 75)
    assert [record.args[1:3] for record in caplog.records] == [(76, 2), (151, 3)]
    assert "has 76 tokens; read in 2 chunks of up to 75" in caplog.messages[0]


def test_parsing_needs_no_torch():
    code = "import sys, text_encoder.prompt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
