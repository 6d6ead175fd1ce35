"""ONNX files in int8: which of their matrices, and how.

The vocabulary gets a scale for each of its rows, weights one for each output channel. Weights have seven bits:
processors without VNNI add up products of bytes in 16 bits, which overflow with eight (cosines fall to 0.8), and so
results would depend on the processor. Activations are quantized as they come, each position by its own largest value
(token-wise, in ZeroQuant, arXiv:2206.01861), so that no item has an effect on another of its batch. onnxruntime's own
quantization has one range for all that a product is given, so that items would have to be computed one by one.
"""

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = "vocabulary"
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operations
LEAST = np.float32(1e-30)  # of scales, where all is zero
AXIS, SMALLEST, STEP, ZERO = "int8.axis", "int8.least", "int8.step", "int8.zero"
CONSTANTS = {AXIS: np.array([-1]), SMALLEST: LEAST, STEP: np.float32(1 / 127), ZERO: np.uint8(128)}  # of the graphs
LARGE = 1 << 18  # elements of a table from which on it counts as a vocabulary


def kinds_of(path: Path) -> dict[str, list[str]]:
    """The kinds of matrices of a file that can be quantized, each with the names of its nodes: one in each layer."""
    import onnx

    found: dict[str, list[str]] = {}
    graph = onnx.load(path).graph
    shapes = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in shapes:
            name = re.sub(r"_\d+(?=/|$)|\.\d+(?=/|$)", "", node.name.rpartition("/")[0]).strip("/")
            found.setdefault(f"{name} {'x'.join(map(str, shapes[node.input[1]]))}", []).append(node.name)
        elif (
            node.op_type == "Gather"
            and len(shape := shapes.get(node.input[0], ())) == 2
            and shape[0] * shape[1] > LARGE
        ):
            found.setdefault(VOCABULARY, []).append(node.name)
    return found


def quantize(source: Path, target: Path, kinds: dict[str, list[str]], wide: Collection[str]) -> None:
    """Write `source` to `target` with the matrices of all `kinds` in int8, but those of `wide` as they are.

    The rows of a table become t = round(127 row / max|row|). In products, a position x becomes
    q = round(127 x / max|x|) + 128, and the weights w of an output v = round(63 w / max|w|), so that x w is nearly
    (q - 128) v max|x| max|w| / (127 x 63).
    """
    import onnx

    model = onnx.load(source)
    graph = model.graph
    chosen = {name for kind, names in kinds.items() if kind not in wide for name in names}
    stored = {weight.name: weight for weight in graph.initializer}
    added, nodes, rounded = dict(CONSTANTS), [], set()
    for node in graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        is_table = node.op_type == "Gather"
        activations, matrix = (None, node.input[0]) if is_table else node.input
        if f"{matrix}.int8" not in added:
            values = onnx.numpy_helper.to_array(stored[matrix])
            axis, most = (1, 127) if is_table else (0, 63)
            scales = np.maximum(np.abs(values).max(axis, keepdims=is_table) / np.float32(most), LEAST)
            added[f"{matrix}.int8"], added[f"{matrix}.scales"] = np.round(values / scales).astype(np.int8), scales
        if activations and activations not in rounded:  # once for products that share them: query, key and value
            rounded.add(activations)
            nodes += _rounding(activations)
        nodes += _lookup(node) if is_table else _product(node)
    used = {name for node in nodes for name in node.input}
    weights = [*graph.initializer, *(onnx.numpy_helper.from_array(value, name) for name, value in added.items())]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weight for weight in weights if weight.name in used)
    model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    onnx.save(model, target)


def _lookup(node: Any) -> list[Any]:
    """In place of a Gather from a table."""
    from onnx import TensorProto
    from onnx.helper import make_node

    (table, ids), [taken] = node.input, node.output
    return [
        make_node("Gather", [f"{table}.int8", ids], [f"{taken}.int8"], node.name),
        make_node("Cast", [f"{taken}.int8"], [f"{taken}.unit"], to=TensorProto.FLOAT),
        make_node("Gather", [f"{table}.scales", ids], [f"{taken}.scale"]),
        make_node("Mul", [f"{taken}.unit", f"{taken}.scale"], [taken]),
    ]


def _rounding(x: str) -> list[Any]:
    """Activations -> x.int8 and x.scale."""
    from onnx.helper import make_node

    return [
        make_node("Abs", [x], [f"{x}.magnitudes"]),
        make_node("ReduceMax", [f"{x}.magnitudes", AXIS], [f"{x}.largest"]),
        make_node("Max", [f"{x}.largest", SMALLEST], [f"{x}.scale"]),
        make_node("Div", [x, f"{x}.scale"], [f"{x}.unit"]),
        make_node("QuantizeLinear", [f"{x}.unit", STEP, ZERO], [f"{x}.int8"]),
    ]


def _product(node: Any) -> list[Any]:
    """In place of a MatMul, whose activations `_rounding` has rounded."""
    from onnx.helper import make_node

    (x, w), [product] = node.input, node.output
    factors = [f"{x}.int8", f"{w}.int8", STEP, f"{w}.scales", ZERO]
    return [
        make_node("MatMulIntegerToFloat", factors, [f"{product}.int8"], node.name, domain=MICROSOFT),
        make_node("Mul", [f"{product}.int8", f"{x}.scale"], [product]),
    ]


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
