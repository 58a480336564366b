"""What the command line refuses before anything heavy is imported. Every check raises ConfigError with one line."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ..errors import ConfigError

EXAMPLE = 'fewstep sample "a red circle above a blue square"'
DTYPES = ("float32", "float16", "bfloat16")
OFFLOADS = ("model",)
FORMATS = ("human", "json")
MAX_STEPS = 10_000
MAX_NFE = 1_000_000
MAX_IMAGES = 10_000
MAX_BATCH = 1_024
MAX_SIDE = 8_192
MAX_SEED = 2**63 - 1
MAX_PROMPT = 20_000
MAX_BATCH_TEXT = 100_000  # the metadata of a picture holds the prompts of its batch
MAX_PROMPT_FILE = 16 << 20

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """`value` if it is allowed; else an error that lists what is, the likeliest first."""
    if value in allowed:
        return value
    # "DPM++ 2M" and "dpmpp_2m" are 2m
    plain = re.sub(r"[\W_]", "", value.lower().replace("++", "")).removeprefix("dpmpp").removeprefix("dpm")
    close = [name for name in allowed if plain in (name, name.replace("-", ""))]
    close = close or get_close_matches(value.lower(), allowed, n=2, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    expected = f"one of {', '.join(allowed)}" if len(allowed) > 1 else allowed[0]
    raise ConfigError(f"{option} {value!r} does not exist: expected {expected}{hint}")


def whole(option: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        top = "2^63 - 1" if high == MAX_SEED else f"{high:,}"
        raise ConfigError(f"{option} must be a whole number from {low} to {top}, got {value}")
    return value


def scale(value: float | None, what: str = "--guidance-scale") -> float | None:
    """From 1 on. Below, diffusers' pipelines turn guidance off and keep the prompt; the formula would turn it against
    the prompt (0: the prompt has no part in it), and hardly anybody who types such a number wants that."""
    if value is not None and not (math.isfinite(value) and 1.0 <= value <= 1000.0):
        raise ConfigError(f"{what} must be a number from 1 to 1000 (1 is no guidance: the prompt alone, at half the "
                          f"cost), got {value:g}")  # fmt: skip
    return value


def strength(value: float | None) -> float | None:
    if value is not None and not 0.0 < value <= 1.0:  # true for NaN
        raise ConfigError(
            f"--strength must be a number above 0 and at most 1 (1: nothing of the picture stays), got {value}"
        )
    return value


def content(option: str, location: str, expected: str, most: int) -> bytes:
    """The bytes of a small file. ConfigError, in one line, for what is no file, not readable, or above `most` bytes."""
    path = Path(location)
    try:
        if not path.is_file():
            raise ConfigError(f"{option} {location!r} {not_a_file(location)}: expected {expected}")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{option} {location!r} cannot be read: {reason}") from None
    if len(data) > most:
        raise ConfigError(f"{option} {location!r} is larger than {most >> 20} MB")
    return data


def not_a_file(location: str) -> str:
    """Why this is no file that can be read, where `is_file` says so."""
    path = Path(location)
    if not location:
        return "is an empty name"
    return "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"


def side(option: str, value: int | None) -> int | None:
    return None if value is None else whole(option, value, 1, MAX_SIDE)


def device(value: str) -> str:
    """The spelling only; whether the device is there is known once torch is loaded."""
    if not _DEVICE.fullmatch(value):
        raise ConfigError(f"--device {value!r} does not exist: expected auto, cpu, cuda, cuda:N or mps")
    return value


def prompts(given: Sequence[str] | None, file: str | None) -> tuple[str, ...]:
    """The prompts, from the command line or one a line from a file ("-": standard input)."""
    if given and file is not None:
        raise ConfigError("prompts were given both on the command line and with --prompt-file: use one of the two")
    found = tuple(given or ()) if file is None else _read_prompts(file)
    if not found:
        raise ConfigError(f"there is no prompt: give one, as in {EXAMPLE}, or --prompt-file FILE")
    return tuple(text(prompt, "prompt") for prompt in found)


def text(value: str, what: str) -> str:
    """A prompt that a tokenizer and a PNG can take."""
    if len(value) > MAX_PROMPT:
        raise ConfigError(f"a {what} may have at most {MAX_PROMPT:,} characters, got {len(value):,}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        shown = ascii(value[:60])
        raise ConfigError(f"the {what} {shown} is not valid UTF-8: check the encoding of terminal or file") from None
    if "\0" in value:
        raise ConfigError(f"the {what} {value[:60]!a} has a NUL character in it: it is no text")
    return value


def _read_prompts(file: str) -> tuple[str, ...]:
    name = "standard input" if file == "-" else repr(file)
    try:
        if file == "-":
            raw = sys.stdin.buffer.read(MAX_PROMPT_FILE + 1)
        else:
            with Path(file).open("rb") as stream:
                raw = stream.read(MAX_PROMPT_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--prompt-file {name} cannot be read: {reason}; expected one prompt a line") from None
    if len(raw) > MAX_PROMPT_FILE:
        raise ConfigError(f"--prompt-file {name} is larger than {MAX_PROMPT_FILE >> 20} MB")
    # not splitlines(), which also ends a line at a form feed, U+0085 or U+2028
    lines = re.split(r"\r\n|\r|\n", _decoded(raw, name))
    found = tuple(line.strip(" \t\ufeff") for line in lines if line.strip(" \t\ufeff").strip())
    if not found:
        raise ConfigError(f"--prompt-file {name} has no prompt in it: expected one a line")
    return found


def _decoded(raw: bytes, name: str) -> str:
    """The text of a prompt file, which may begin with the byte order mark of UTF-8."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"--prompt-file {name} is UTF-16 text: save it as UTF-8")
    if b"\0" in raw:
        raise ConfigError(f"--prompt-file {name} is a binary file: expected UTF-8 text, one prompt a line")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + len(re.findall(rb"\r\n|\r|\n", raw[: error.start]))
        what = f"the byte 0x{raw[error.start]:02x} in line {line}"
        raise ConfigError(f"--prompt-file {name} is not UTF-8 text ({what}): save it as UTF-8") from None


def embedded_words(model: str, texts: Sequence[str]) -> None:
    """An embedded model knows few words; a text with others is refused with prompts that work."""
    from ..models.captions import nearest_prompts, unknown_words

    for value in texts:
        unknown = unknown_words(value)
        if unknown:
            shown = ", ".join(repr(word) for word in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
            tries = ", ".join(f'"{prompt}"' for prompt in nearest_prompts(value))
            raise ConfigError(
                f"{model} was trained on a small world of shapes and has never seen {shown}; "
                f"try {tries} (or another --model)"
            )
