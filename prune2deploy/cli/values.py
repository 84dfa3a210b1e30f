"""Text of options to values. Every refusal is one line that names the option and shows a right one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune2deploy.errors import InputError
from prune2deploy.pipeline.choices import MIXED_PRECISIONS, OPTIMIZERS, SCHEDULES, known
from prune2deploy.pipeline.requests import Claim, InputShape, TrainingChoices
from prune2deploy.pipeline.targets import LatencyTarget, Targets, check_fraction

_NANOSECONDS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_EXAMPLE_OF_LATENCY = "0.5, or a time such as 2.0ms"


def fraction(option: str, text: str | None) -> float | None:
    """A share strictly between 0 and 1, such as 0.33."""
    if text is None:
        return None
    return check_fraction(option, _number(option, text, example="0.33"))


def latency(option: str, text: str | None) -> LatencyTarget | None:
    """A share of the dense latency, such as 0.5, or a time with its unit, such as 2.0ms, 800us or 1.5s."""
    if text is None:
        return None
    unit = next((unit for unit in _NANOSECONDS if text.endswith(unit)), None)  # "s" last: it ends the others too
    number = _number(option, text if unit is None else text.removesuffix(unit), example=_EXAMPLE_OF_LATENCY)
    if unit is not None:
        if not 0 < number < float("inf"):
            raise InputError("is no time", where=f"{option} {text}", hint=f"for instance {option} 2.0ms")
        return LatencyTarget(nanoseconds=number * _NANOSECONDS[unit])
    if number > 1:
        raise InputError(
            "has no unit, and is more than the whole latency",
            where=f"{option} {text}",
            hint=f"pass a time such as {option} {text}ms, or the share of the dense latency that stays: {option} 0.5",
        )
    return LatencyTarget(fraction=check_fraction(option, number))


def targets(*, flops: str | None, params: str | None, memory: str | None, latency_text: str | None) -> Targets:
    """The options of targets, each under the name of its option; none may be given."""
    return Targets(
        flops=fraction("--flops", flops),
        parameters=fraction("--params", params),
        memory=fraction("--memory", memory),
        latency=latency("--latency", latency_text),
    )


def pareto(option: str, text: str | None) -> tuple[float, ...]:
    """Shares of the dense latency, comma-separated, such as 0.8,0.65,0.5; descending, and none twice."""
    if text is None:
        return ()
    found = [check_fraction(option, _number(option, part.strip(), example="0.8,0.65,0.5")) for part in text.split(",")]
    if len(set(found)) < len(found):
        raise InputError("names a share twice", where=f"{option} {text}", hint=f"for instance {option} 0.8,0.65,0.5")
    return tuple(sorted(found, reverse=True))


def measured_with(
    aimed: Targets | None,
    *,
    pareto: tuple[float, ...] = (),
    solved: bool,
    batch: int | None,
    threads: int | None,
    solver_seconds: float | None,
) -> dict[str, Any]:
    """What latency and memory are taken with, and the time of a solver (``solved``: there will be one), if given.

    Raises:
        InputError: one was given that no target uses.
    """
    latency_asked = bool(pareto) or (aimed is not None and aimed.latency is not None)
    memory_asked = aimed is not None and aimed.memory is not None
    where_used = (
        ("--batch", batch, latency_asked or memory_asked, "--latency, --pareto or --memory"),
        ("--threads", threads, latency_asked, "--latency or --pareto"),
        ("--solver-seconds", solver_seconds, solved, "--ranking optimal"),
    )
    for option, value, used, users in where_used:
        if value is not None and not used:
            raise InputError(
                "is used by nothing that was asked for", where=f"{option} {value:g}", hint=f"it is for {users}"
            )
    given = {"batch": batch, "threads": threads, "solver_seconds": solver_seconds}
    return {name: value for name, value in given.items() if value is not None}


def input_shape(option: str, text: str | None) -> InputShape | None:
    """Channels, height and width, such as 3x224x224."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(
            "is no input shape", where=f"{option} {text}", hint="pass CHANNELSxHEIGHTxWIDTH: --input 3x224x224"
        )
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def shapes(option: str, texts: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Shapes of inputs by name, each such as input=1x3x224x224."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts or ():
        name, equals, sizes = text.rpartition("=")
        parts = sizes.lower().split("x")
        if not (name and equals) or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise InputError(
                "is no shape of an input", where=f"{option} {text}", hint=f"for instance {option} input=1x3x224x224"
            )
        if name in found:
            raise InputError(f"input {name} is named twice", where=f"{option} {text}", hint="give each shape once")
        found[name] = tuple(int(part) for part in parts)
    return found


def counts(option: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers, comma-separated, such as 1,32; ascending and each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(
            "is no list of positive whole numbers", where=f"{option} {text}", hint=f"for instance {option} 1,32"
        )
    return tuple(sorted({int(part) for part in parts}))


def batches(option: str, text: str) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """Batch sizes and ranges of them (smallest, best, largest), such as 1,1:8:32; each ascending and once."""
    single: set[int] = set()
    ranges: set[tuple[int, int, int]] = set()
    for part in text.split(","):
        sizes = part.strip().split(":")
        if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes) or len(sizes) not in (1, 3):
            raise InputError(
                "is no list of batch sizes", where=f"{option} {text}", hint=f"for instance {option} 1,32 or 1:8:32"
            )
        numbers = [int(size) for size in sizes]
        if numbers != sorted(numbers):
            raise InputError(
                f"{part.strip()} does not ascend",
                where=f"{option} {text}",
                hint=f"pass smallest, best and largest, for instance {option} 1:8:32",
            )
        if len(numbers) == 1:
            single.add(numbers[0])
        else:
            ranges.add((numbers[0], numbers[1], numbers[2]))
    return tuple(sorted(single)), tuple(sorted(ranges))


def byte_size(option: str, text: str | None) -> int | None:
    """A size in memory, such as 512MiB or 2GiB, in bytes."""
    if text is None:
        return None
    for unit, factor in (("MiB", 1 << 20), ("GiB", 1 << 30)):
        number = text.removesuffix(unit).strip()
        if number != text and number.isascii() and number.isdigit() and int(number):
            return int(number) * factor
    raise InputError("is no size", where=f"{option} {text}", hint=f"for instance {option} 512MiB or {option} 2GiB")


def compute_capabilities(option: str, text: str | None) -> tuple[tuple[int, int], ...]:
    """Generations of GPUs, such as 8.6,12.0; ascending and each once."""
    if text is None:
        return ()
    found = set()
    for part in text.split(","):
        major, dot, minor = part.strip().partition(".")
        if not dot or not all(number.isascii() and number.isdigit() for number in (major, minor)) or len(minor) > 1:
            raise InputError(
                "is no list of compute capabilities", where=f"{option} {text}", hint=f"for instance {option} 8.6,8.9"
            )
        found.add((int(major), int(minor)))
    return tuple(sorted(found))


def input_format(option: str, text: str, formats: Mapping[str, str]) -> tuple[str, tuple[int, int] | None]:
    """What a file takes, such as uint8-nhwc, and the size of its images where one is given: uint8-nhwc@480x640."""
    name, at, size = text.partition("@")
    known(name, formats, where=option)
    if not at:
        return name, None
    parts = size.split("x")
    if name == "nchw" or len(parts) != 2 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise InputError(
            "is no format of images", where=f"{option} {text}", hint=f"for instance {option} uint8-nhwc@480x640"
        )
    return name, (int(parts[0]), int(parts[1]))


def fixed_batch(option: str, text: str) -> int | None:
    """A batch size, None for "dynamic"."""
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise InputError("is no batch size", where=f"{option} {text}", hint="pass dynamic, or a number such as 8")
    return int(text)


def factors(option: str, text: str) -> tuple[float, ...]:
    """Positive numbers, comma-separated, such as 0.5,1.5; each once, in the order given, to six digits."""
    found = []
    for part in text.split(","):
        value = _number(option, part.strip(), example="0.5,0.75,1.5")
        if not 0 < value < float("inf"):
            raise InputError(
                "is no positive number", where=f"{option} {part.strip()}", hint=f"for instance {option} 0.5,0.75,1.5"
            )
        found.append(float(f"{value:g}"))
    return tuple(dict.fromkeys(found))


def names(option: str, text: str, choices: Mapping[str, str]) -> tuple[str, ...]:
    """Names out of ``choices``, comma-separated; in the order of ``choices`` and each once."""
    asked = {known(part.strip(), choices, where=option) for part in text.split(",")}
    return tuple(name for name in choices if name in asked)


def patterns(option: str, text: str | None) -> tuple[str, ...]:
    """Shell patterns for names, comma-separated, such as blocks.*.mlp.fc1,head."""
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise InputError("holds an empty name", where=f"{option} {text}", hint=f"for instance {option} blocks.0.*,head")
    return parts


def optional_name(option: str, text: str | None, choices: Mapping[str, str]) -> str | None:
    """One name out of ``choices``."""
    return None if text is None else known(text, choices, where=option)


def alignment(option: str, text: str) -> int | None:
    """A granule of channels, such as 16; None for "auto"."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InputError(
            "is no granule", where=f"{option} {text}", hint="pass auto, a number of channels such as 16, or 1 for none"
        )
    return int(text)


def claim(option: str, text: str | None) -> Claim | None:
    """A speed-up such as 3.0, or "flops"."""
    if text is None:
        return None
    if text == "flops":
        return "flops"
    value = _number(option, text, example="3.0, or flops")
    if not 0 < value < float("inf"):
        raise InputError(
            "is no speed-up", where=f"{option} {text}", hint=f"pass a positive factor, for instance {option} 3.0"
        )
    return value


def rate(option: str, value: float | None, *, below: float = float("inf"), zero: bool = True) -> float | None:
    """A number from 0 (included where ``zero``) up to, and without, ``below``."""
    if value is None or (0 < value < below) or (zero and value == 0):
        return value
    bound = "" if below == float("inf") else f" and less than {below:g}"
    least = "0 or more" if zero else "more than 0"
    raise InputError("is out of range", where=f"{option} {value:g}", hint=f"it must be {least}{bound}")


def share_of_one(option: str, value: float) -> float:
    """A number strictly between 0 and 1."""
    if 0 < value < 1:
        return value
    raise InputError("is out of range", where=f"{option} {value:g}", hint="it must lie between 0 and 1, as 0.02 for 2%")


def training_choices(
    *,
    epochs: int | None,
    lr: float | None,
    batch_size: int | None,
    optimizer: str | None,
    schedule: str | None,
    warmup_epochs: int | None,
    label_smoothing: float | None,
    weight_decay: float | None,
    mixed_precision: str | None,
    ema: float | None = None,
    compile_with: str | None = None,
    micro_batches: int | None = None,
) -> TrainingChoices:
    """The options of training, each under the name of its option."""
    return TrainingChoices(
        epochs=epochs,
        learning_rate=rate("--lr", lr, zero=False),
        batch_size=batch_size,
        optimizer=optional_name("--optimizer", optimizer, OPTIMIZERS),
        schedule=optional_name("--schedule", schedule, SCHEDULES),
        warmup_epochs=warmup_epochs,
        label_smoothing=rate("--label-smoothing", label_smoothing, below=1),
        weight_decay=rate("--weight-decay", weight_decay),
        mixed_precision=optional_name("--mixed-precision", mixed_precision, MIXED_PRECISIONS),
        ema_decay=rate("--ema", ema, below=1),
        compile=compile_with,
        micro_batches=micro_batches,
    )


def run_or_files(paths: list[Path] | None) -> tuple[Path | None, tuple[Path, ...]]:
    """One run folder, or ONNX files; neither for the latest run."""
    if not paths:
        return None, ()
    for path in paths:
        if not path.exists():
            raise InputError("does not exist", where=str(path), hint="name a run folder or ONNX files")
    folders = [path for path in paths if path.is_dir()]
    if not folders:
        return None, tuple(paths)
    if len(paths) > 1:
        raise InputError(
            "is a folder among several names", where=str(folders[0]), hint="name one run folder, or only ONNX files"
        )
    return folders[0], ()


def _number(option: str, text: str, *, example: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            "is not a number", where=f"{option} {text}", hint=f"for instance {option} {example}"
        ) from error
