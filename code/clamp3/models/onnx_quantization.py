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

import numpy as np

VOCABULARY = "vocabulary"
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operations
LEAST = np.float32(1e-30)  # of scales, where all is zero
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
    from onnx.helper import make_node

    model = onnx.load(source)
    graph = model.graph
    chosen = {name for kind, names in kinds.items() if kind not in wide for name in names}
    stored = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    constants = {"axis": np.array([-1]), "least": LEAST, "step": np.float32(1 / 127), "zero": np.uint8(128)}
    added = {f"int8.{name}": value for name, value in constants.items()}
    axis, least, step, zero = added
    quantized, nodes = set(), []
    for node in graph.node:
        if node.name not in chosen:
            nodes.append(node)
        elif node.op_type == "Gather":
            (table, ids), taken = node.input, node.output[0]
            added[f"{table}.int8"], added[f"{table}.scales"] = _rounded(stored[table], 1, 127)
            nodes += [
                make_node("Gather", [f"{table}.int8", ids], [f"{taken}.int8"], node.name),
                make_node("Cast", [f"{taken}.int8"], [f"{taken}.unit"], to=onnx.TensorProto.FLOAT),
                make_node("Gather", [f"{table}.scales", ids], [f"{taken}.scale"]),
                make_node("Mul", [f"{taken}.unit", f"{taken}.scale"], [taken]),
            ]
        else:
            (x, w), product = node.input, f"{node.output[0]}.int8"
            if x not in quantized:  # once for the products that share it: query, key and value
                quantized.add(x)
                nodes += [
                    make_node("Abs", [x], [f"{x}.magnitudes"]),
                    make_node("ReduceMax", [f"{x}.magnitudes", axis], [f"{x}.largest"]),
                    make_node("Max", [f"{x}.largest", least], [f"{x}.scale"]),
                    make_node("Div", [x, f"{x}.scale"], [f"{x}.unit"]),
                    make_node("QuantizeLinear", [f"{x}.unit", step, zero], [f"{x}.int8"]),
                ]
            added[f"{w}.int8"], scales = _rounded(stored[w], 0, 63)
            added[f"{w}.scales"] = scales.squeeze(0)
            factors = [f"{x}.int8", f"{w}.int8", step, f"{w}.scales", zero]
            nodes += [
                make_node("MatMulIntegerToFloat", factors, [product], node.name, domain=MICROSOFT),
                make_node("Mul", [product, f"{x}.scale"], list(node.output)),
            ]
    used = {name for node in nodes for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    weights += [onnx.numpy_helper.from_array(value, name) for name, value in added.items()]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
    onnx.save(model, target)


def _rounded(matrix: np.ndarray, axis: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in int8, of `most` at most, and the scales along `axis` that give it back."""
    scales = np.maximum(np.abs(matrix).max(axis, keepdims=True) / np.float32(most), LEAST)
    return np.round(matrix / scales).astype(np.int8), scales


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
