"""Export a detector as one file that runs without this package: ONNX, or a program of torch.export.

    export_detector(detector, Path("nut.onnx"), names=["metal nut"], images=files, format="onnx")

`nut.onnx.json` beside it describes its inputs and outputs.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from aaclip.config import Config
from aaclip.data.augment import squash
from aaclip.data.selection import find_training_list, read_image_paths
from aaclip.detector.baked import BakedDetector
from aaclip.detector.calibration import choose_threshold
from aaclip.detector.detector import Detector
from clip_common.errors import check_extra
from clip_common.images import find_images, read_image
from clip_common.reporting import Progress, Reporter, silent
from clip_common.runs.files import write_atomically, write_json

Format = Literal["onnx", "torch"]

INPUTS = ["images", "name"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4
"""Largest difference of a score, or of a pixel of a map, from this package's own."""
INT8_TOLERANCE = 0.1
"""The same for scores of 8-bit weights; maps are not limited."""
CHECKED = 4
"""Training images that are compared if no others are given."""
BATCH = 32
"""Largest batch that is compared."""
LARGEST = 2**31
"""Bytes that one ONNX file can hold."""

Run = Callable[[NDArray[np.uint8], int], list[NDArray[Any]]]
"""Pictures (B, S, S, 3) and the row of their name -> score, map and, with a threshold, verdict."""


@dataclass(frozen=True)
class Parity:
    """Differences between an exported file and this package, each picture alone and all of a name in one batch.

    Attributes:
        images: Pictures that were compared.
        batch: Pictures in the largest batch.
        score: Largest difference of a score.
        map: Largest difference of a pixel of a map.
        verdicts: Verdicts that differ.
    """

    images: int
    batch: int
    score: float
    map: float
    verdicts: int


@dataclass(frozen=True)
class Exported:
    """Result of `export_detector`.

    Attributes:
        file: The model.
        description: The JSON file beside it.
        parity: As measured on the written file.
    """

    file: Path
    description: Path
    parity: Parity


class _Case(NamedTuple):
    """Pictures of one name, and what this package says of them."""

    name: int
    images_BSS3: NDArray[np.uint8]
    scores_B: NDArray[np.float64]
    maps_BSS: NDArray[np.float32]


def export_detector(
    detector: Detector,
    file: Path,
    *,
    names: Sequence[str],
    images: Sequence[Path],
    format: Format = "onnx",
    int8: bool = False,
    reporter: Reporter = silent,
) -> Exported:
    """Write a detector for some names as one file, compare it with this package on real images, and describe it.

    Class embeddings, remembered images, contexts, weights of the score, border and threshold are constants in the file.
    The file takes pictures that are resized already, as uint8, in batches of any size; see `describe_interface`.

    Args:
        detector: On the CPU.
        file: Ends in .onnx or .pt2, as the format demands; replaced if it exists.
        names: What images may show.
        images: Pictures to compare on; they are shared out among the names.
        format: ONNX, or what `torch.export.load` reads.
        int8: Store the matrices of linear layers in 8 bits, and multiply by them in 8 bits (ONNX alone).
        reporter: Shows progress.

    Returns:
        What was written.

    Raises:
        ValueError: One line; nothing is written: a suffix of another format, no or repeated names, int8 without ONNX, a
            threshold for tiles, weights beyond 2 GiB for ONNX, or results that differ by more than the tolerance.
    """
    check_request(file, names=names, format=format, int8=int8)
    threshold = choose_threshold(detector.threshold, None, tile=None)
    baked = BakedDetector(detector, names, threshold=threshold)
    cases = list(_make_cases(detector, names, images))
    interface = describe_interface(detector.size, verdict=threshold is not None)
    description = file.with_name(f"{file.name}.json")
    with reporter("exporting") as progress, write_atomically(file) as temporary:
        _step(progress, 1)
        program = _trace(baked)
        _step(progress, 2)
        if format == "torch":
            with temporary.open("wb") as stream:
                torch.export.save(program, stream)
        else:
            _write_onnx(program, temporary, outputs=list(interface["outputs"]), int8=int8)
        _step(progress, 3)
        parity = measure_parity(
            open_exported(temporary, format=format), cases, threshold=None if threshold is None else threshold.value
        )
        check_parity(parity, int8=int8)
        described = {
            "file": file.name,
            "format": format,
            "int8": int8,
            "model": detector.name,
            "names": list(names),
            "size": detector.size,
            "threshold": None if threshold is None else threshold.value,
            **interface,
            "parity": asdict(parity),
        }
    write_json(description, described)
    return Exported(file, description, parity)


def check_request(file: Path, *, names: Sequence[str], format: Format, int8: bool) -> None:
    """Raise ValueError for a request that cannot be met; call before slow work."""
    if format == "onnx":
        check_extra("aaclip[export]", "onnx", "onnxruntime", "onnxscript", purpose="export to ONNX")
    if file.suffix != SUFFIXES[format]:
        raise ValueError(f"{file}: a file of the format {format} ends in {SUFFIXES[format]}")
    if file.is_dir():
        raise ValueError(f"{file}: a folder, where the exported file is to be: name another")
    if int8 and format != "onnx":
        raise ValueError("int8 is for the format onnx alone: leave --int8 out, or export with --format onnx")
    if not names or not all(name.strip() for name in names):
        raise ValueError("export needs what the images may show: give one or more names")
    if len(set(names)) < len(names):
        raise ValueError(f"names {', '.join(names)}: each once")


def choose_images(source: str | Path, check: Sequence[str | Path], *, config: Config) -> list[Path]:
    """Return the pictures on which an export is compared: those given, else some that the run was trained on.

    Args:
        source: The run, a saved detector, or the name of a CLIP.
        check: Files, folders or globs; none: training images.
        config: Of the detector.

    Raises:
        ValueError: None are given, and there is no list of training images or they are gone.
    """
    if check:
        return find_images(check)
    listed = find_training_list(Path(source))
    root = config.data.root
    files = [] if listed is None or root is None else read_image_paths(listed, root=Path(root))
    there = [file for file in files if file.exists()]
    if not there:
        raise ValueError(f"{source}: no training images to compare the exported file on: give --check IMAGES")
    return there[:: max(1, len(there) // CHECKED)][:CHECKED]


def describe_interface(size: int, *, verdict: bool) -> dict[str, Any]:
    """Return the inputs and outputs of an exported file as JSON values.

    Args:
        size: S.
        verdict: The file has a threshold.
    """
    outputs = {
        "score": {"shape": ["batch"], "dtype": "float32", "about": "0 to 1, higher is more anomalous"},
        "map": {
            "shape": ["batch", size, size],
            "dtype": "float32",
            "about": "0 to 1 for each pixel; above 0.5 it is part of a defect; resize it to the picture",
        },
    }
    if verdict:
        outputs["verdict"] = {"shape": ["batch"], "dtype": "bool", "about": "true: anomalous, the score >= threshold"}
    return {
        "inputs": {
            "images": {
                "shape": ["batch", size, size, 3],
                "dtype": "uint8",
                "about": f"RGB, resized to {size} x {size} pixels (bicubic, whatever the aspect), not normalised",
            },
            "name": {"shape": [], "dtype": "int64", "about": "what all images show: a position in names, from 0"},
        },
        "outputs": outputs,
    }


def open_exported(file: Path, *, format: Format) -> Run:
    """Open an exported file on the CPU.

    Returns:
        A function of pictures and the row of their name.
    """
    if format == "torch":
        with file.open("rb") as stream:
            module = torch.export.load(stream).module()

        def run(images_BSS3: NDArray[np.uint8], name: int) -> list[NDArray[Any]]:
            with torch.inference_mode():
                return [answer.numpy() for answer in module(torch.from_numpy(images_BSS3), torch.tensor(name))]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(images_BSS3: NDArray[np.uint8], name: int) -> list[NDArray[Any]]:
            answers: list[NDArray[Any]] = session.run(None, {"images": images_BSS3, "name": np.array(name)})
            return answers

    return run


def measure_parity(run: Run, cases: Sequence[_Case], *, threshold: float | None) -> Parity:
    """Compare an exported file with this package: each picture alone, and all of a name in batches of up to 32."""
    scores, maps, verdicts = [0.0], [0.0], 0
    for name, images_BSS3, scores_B, maps_BSS in cases:
        count = len(images_BSS3)
        alone = [slice(row, row + 1) for row in range(count)]
        for rows in [*alone, *(slice(start, start + BATCH) for start in range(0, count, BATCH))]:
            score_B, map_BSS, *verdict = run(images_BSS3[rows], name)
            scores.append(float(np.abs(score_B - scores_B[rows]).max()))
            maps.append(float(np.abs(map_BSS - maps_BSS[rows]).max()))
            if threshold is not None:
                verdicts += int((verdict[0] != (scores_B[rows] >= threshold)).sum())
    sizes = [len(case.images_BSS3) for case in cases]
    return Parity(sum(sizes), batch=min(BATCH, max(sizes)), score=max(scores), map=max(maps), verdicts=verdicts)


def check_parity(parity: Parity, *, int8: bool) -> None:
    """Raise ValueError if an exported file differs from this package by more than the tolerance."""
    most = INT8_TOLERANCE if int8 else TOLERANCE
    # written so that NaN fails
    if not (parity.score <= most and (int8 or parity.map <= most)):
        advice = "export without --int8" if int8 else "report it, with the versions of torch and onnxruntime"
        raise ValueError(
            f"the exported file differs from this package by {parity.score:.2g} in scores and {parity.map:.2g} in "
            f"maps, on {parity.images} images; {most:g} is allowed, so nothing was written: {advice}"
        )


def _make_cases(detector: Detector, names: Sequence[str], files: Sequence[Path]) -> Iterator[_Case]:
    """Yield pictures for each name, shared out so that every name gets at least one."""
    rounds = [files[turn % len(files)] for turn in range(max(len(files), len(names)))]
    for row, name in enumerate(names):
        pictures = [read_image(file) for file in rounds[row :: len(names)]]
        images_BSS3 = np.stack([np.asarray(squash(picture, None, side=detector.size)[0]) for picture in pictures])
        text_1D2, memory = detector.class_embedding(name)[None], detector.memory_of(name)
        context = detector.text_contexts([name])
        found = [
            detector.scores(detector.tensor_of(picture)[None], text_1D2, memory=memory, context=context)
            for picture in pictures
        ]
        scores_B = np.concatenate([one.scores_B.numpy() for one in found])
        maps_BSS = np.concatenate([expit(one.maps_BSS.numpy() - np.float32(detector.border)) for one in found])
        yield _Case(row, images_BSS3, scores_B, maps_BSS)


def _step(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress(done, 4)


def _trace(baked: BakedDetector) -> torch.export.ExportedProgram:
    size = baked.scorer.size
    example = (torch.zeros(2, size, size, 3, dtype=torch.uint8), torch.tensor(0))
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(baked.eval(), example, dynamic_shapes={"images_BSS3": {0: batch}, "name": None})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has the paths of this machine
    return program


def _write_onnx(program: torch.export.ExportedProgram, file: Path, *, outputs: Sequence[str], int8: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights >= LARGEST:
        raise ValueError(
            f"weights of {weights / 2**30:.1f} GiB do not fit in one ONNX file, which holds 2: use --format torch"
        )
    with _quietly():
        made = torch.onnx.export(program, dynamo=True, input_names=INPUTS, output_names=outputs, verbose=False)
        assert made is not None
        model = made.model_proto
        _turn_weights(model)
        graph = model.graph
        for part in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
            part.ClearField("metadata_props")  # the exporter's notes: more bytes than the graph
        if int8:
            # one scale a column; activations are scaled as they come
            kinds, weight = ["MatMul", "Gemm"], QuantType.QInt8
            quantize_dynamic(model, file, op_types_to_quantize=kinds, per_channel=True, weight_type=weight)
        else:
            onnx.save(model, file)


def _turn_weights(model: Any) -> None:
    """Store weights as they are multiplied, each once, in place.

    For weights that two passes share, the exporter leaves a Transpose before each of them, or two copies if they are
    small. onnxruntime would keep both, and its quantiser finds no constant behind a Transpose.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    homes: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        order = tuple(node.attribute[0].ints)
        home = homes.setdefault((node.input[0], order), node.output[0])
        if home == node.output[0]:
            values = numpy_helper.to_array(weights[node.input[0]]).transpose(order)
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name=home))
        renamed[node.output[0]] = home
        graph.node.remove(node)
    for tensor in graph.initializer:
        if not tensor.raw_data:  # a scalar, stored otherwise
            continue
        content = (tensor.data_type, *tensor.dims, hashlib.sha256(tensor.raw_data).digest())
        renamed.setdefault(tensor.name, homes.setdefault(content, tensor.name))
    for node in graph.node:
        node.input[:] = [renamed.get(renamed.get(name, name), name) for name in node.input]
    used = {name for node in graph.node for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.name not in used:
            graph.initializer.remove(tensor)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter and the quantiser, which report their own steps and deprecations as warnings."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
