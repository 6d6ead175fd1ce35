// Interleaved ABC -> the feature that the symbolic tower gives it, by onnxruntime-web, in a browser or in Node.
//
// A port of inputs/patchilizer.py and inputs/segments.py for interleaved ABC in ASCII, as clamp3's converters write it.
// Anything else is refused: other ABC is interleaved first (clamp3 convert interleave).

const [PAD, BOS, EOS] = [0, 1, 2];
const BARLINE = /(\|:|::|:\||\[\||\|\||\|\]|\|)/;
const FIELD = /^(?:[A-Za-z]:|%%)/;
// Interleaved ABC as formats/abc.py knows its usual form: fields, then lines that hold one bar of each voice, which a
// repeat sign may open.
const HEADER = /^(?:(?:[A-Za-z]:(?![|:])|%%(?!begin))[^\n]*\n)*/;
const TEXT = String.raw`[^"%\\$` + "`" + String.raw`|:\[\]\r\n]*`;
const MORE = String.raw`(?:(?:"${TEXT}"|\[(?:(?!V)[A-Za-z]:)?${TEXT}\])${TEXT})*`;
const BARS = new RegExp(String.raw`^(?:\[V:[^\s\]]+\](?:\|:|\[\|)?${TEXT}${MORE}(?::*\[?\|[|:\]]*|::+)\d*)+$`);

function isInterleaved(text) {
  const header = text.match(HEADER)[0];
  const lines = text.slice(header.length).replace(/\n+$/, "").split("\n");
  if (!/^K:/m.test(header) || !lines.every((line) => BARS.test(line))) return false;
  const voices = lines.map((line) => [...line.matchAll(/\[V:([^\s\]]+)\]/g)].map((found) => found[1]));
  const most = Math.max(...voices.map((names) => names.length));
  if (voices.some((names) => new Set(names).size < names.length)) return false;
  return most > 1 || new Set(voices.map(String)).size === 1;
}

/** The patches of interleaved ABC as strings: fields and directives whole, music cut behind each barline. */
export function split(text) {
  const odd = text.match(/[^\x09\x0a\x20-\x7e]/u);
  if (odd) throw new Error(`the character ${JSON.stringify(odd[0])} is none of ASCII, which is all that this reads`);
  if (!isInterleaved(text)) throw new Error("not interleaved ABC in its usual form: clamp3 convert interleave");
  const lines = text.replaceAll("L:1/8\n", "").match(/[^\n]*\n|[^\n]+/g);
  return lines.flatMap((line) => (line.length > 1 && FIELD.test(line) ? [line] : splitLine(line)));
}

function splitLine(line) {
  const pieces = line.split(BARLINE).filter((piece) => piece); // notes and barlines in turn
  if (pieces.length > 1 && pieces[0].match(BARLINE)?.[0] === pieces[0]) pieces.splice(0, 2, pieces[0] + pieces[1]);
  const bars = [];
  for (let place = 0; place + 1 < pieces.length; place += 2) bars.push(pieces[place] + pieces[place + 1]);
  if (bars.length) bars[bars.length - 1] += "\n";
  return bars;
}

/** The sequence of the symbolic tower: one Uint8Array of `size` ids for each patch, with the special ones. */
export function encode(text, size = 64) {
  const framed = split(text).map((patch) => [BOS, ...new TextEncoder().encode(patch), EOS]);
  const sequence = [Array(size).fill(BOS), ...framed, [BOS, ...Array(size - 1).fill(EOS)]];
  return sequence.map((ids) => Uint8Array.from({ length: size }, (_, place) => ids[place] ?? PAD));
}

/** [start, stop, weight] of segments of `longest`, side by side; the last overlaps, and counts for what it adds. */
export function cut(length, longest) {
  const segments = [];
  let start = 0;
  for (; start + longest <= length; start += longest) segments.push([start, start + longest, longest]);
  if (start < length) segments.push([Math.max(0, length - longest), length, length - start]);
  return segments;
}

/** The feature of a tune, a Float32Array. `sizes` are those of onnx.json; `session` is of symbolic.onnx. */
export async function embed(ort, session, sizes, text) {
  const { PATCH_SIZE: size, PATCH_LENGTH: longest } = sizes;
  const patches = encode(text, size);
  const sum = new Float64Array(sizes.CLAMP3_HIDDEN_SIZE);
  for (const [start, stop, weight] of cut(patches.length, longest)) {
    const length = stop - start;
    const ids = new Uint8Array(length * size);
    patches.slice(start, stop).forEach((patch, place) => ids.set(patch, place * size));
    const inputs = new ort.Tensor("uint8", ids, [1, length, size]);
    const masks = new ort.Tensor("int64", new BigInt64Array(length).fill(1n), [1, length]);
    const { features } = await session.run({ inputs, masks }, ["features"]);
    features.data.forEach((value, place) => (sum[place] += (weight / patches.length) * value));
  }
  return Float32Array.from(sum);
}

/** How alike two features are. */
export function cosine(one, other) {
  const dot = (a, b) => a.reduce((total, value, place) => total + value * b[place], 0);
  return dot(one, other) / Math.sqrt(dot(one, one) * dot(other, other));
}
