"""ONNX files in int8, by onnxruntime's own quantization: which of their matrices, and how.

Weights get a scale for each output channel, and the vocabulary one for each word. They have seven bits: processors
without VNNI add up products of bytes in 16 bits, which overflow with eight (cosines fall to 0.8), and so results would
depend on the processor. Activations are quantized as they come, by their range.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

VOCABULARY = "vocabulary"
LARGE = 1 << 18  # elements of a table from which on it counts as a vocabulary


def kinds_of(path: Path) -> dict[str, list[str]]:
    """The kinds of matrices of a file that can be quantized, each with the names of its nodes: one in each layer."""
    import onnx

    found: dict[str, list[str]] = {}
    graph = onnx.load(path).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in shapes:
            name = re.sub(r"_\d+(?=/|$)|\.\d+(?=/|$)", "", node.name.rpartition("/")[0]).strip("/") or "patches"
            found.setdefault(f"{name} {'x'.join(map(str, shapes[node.input[1]]))}", []).append(node.name)
        elif (
            node.op_type == "Gather"
            and len(shape := shapes.get(node.input[0], ())) == 2
            and shape[0] * shape[1] > LARGE
        ):
            found.setdefault(VOCABULARY, []).append(node.name)
    return found


def quantize(source: Path, target: Path, kinds: dict[str, list[str]], wide: Collection[str]) -> None:
    """Write `source` to `target` with the matrices of all `kinds` in int8, but those of `wide` as they are."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    for kind, names in kinds.items():
        if kind == VOCABULARY and kind not in wide:
            for name in names:
                _scale_rows(model.graph, name)
            options: dict[str, Any] = {"op_types_to_quantize": ["Gather"], "nodes_to_quantize": names}
            quantize_dynamic(model, target, weight_type=QuantType.QInt8, **options)
            model = onnx.load(target)
    names = [name for kind, names in kinds.items() if kind not in (VOCABULARY, *wide) for name in names]
    if not names:
        onnx.save(model, target)
        return
    options = {"op_types_to_quantize": ["MatMul"], "nodes_to_quantize": names}
    quantize_dynamic(model, target, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8, **options)


def _scale_rows(graph: Any, name: str) -> None:
    """Let the table of a Gather hold rows whose largest value is 1, and multiply what is taken by what they had."""
    import numpy as np
    from onnx import helper, numpy_helper

    place, node = next((place, node) for place, node in enumerate(graph.node) if node.name == name)
    stored = next(weight for weight in graph.initializer if weight.name == node.input[0])
    table = numpy_helper.to_array(stored)
    scales = np.abs(table).max(axis=1, keepdims=True)
    scales[scales == 0] = 1
    rows, taken, factors = f"{stored.name}.rows", f"{node.output[0]}.rows", f"{node.output[0]}.scales"
    graph.initializer.append(numpy_helper.from_array(table / scales, rows))
    graph.initializer.append(numpy_helper.from_array(scales, f"{stored.name}.scales"))
    graph.initializer.remove(stored)
    ids, output = node.input[1], node.output[0]
    scaled = helper.make_node("Gather", [f"{stored.name}.scales", ids], [factors], f"{name}.scales")
    product = helper.make_node("Mul", [taken, factors], [output], f"{name}.scaled")
    node.input[0], node.output[0] = rows, taken
    graph.node.insert(place + 1, scaled)
    graph.node.insert(place + 2, product)


def quantize_well(source: Path, target: Path, loss_of: Callable[[], float], is_good: Callable[[], bool]) -> list[str]:
    """Write `source` to `target` in int8, and return the kinds of matrices that stay wide in it.

    All are quantized, unless `is_good` says no of what `target` then is: then those that lose most by themselves, as
    `loss_of` says of `target`, stay wide, one kind after another, until it says yes, or all do.
    """
    kinds = kinds_of(source)
    quantize(source, target, kinds, [])
    if is_good():
        return []
    losses = {}
    for kind in kinds:
        quantize(source, target, kinds, set(kinds) - {kind})
        losses[kind] = loss_of()
    wide: list[str] = []
    for kind in sorted(kinds, key=lambda kind: -losses[kind]):
        wide.append(kind)
        quantize(source, target, kinds, wide)
        if is_good():
            break
    return wide
