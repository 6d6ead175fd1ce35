// Features of tunes in Node: node embed.mjs FOLDER_OF_ONNX TUNE.abc … prints a line of JSON for each.

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { embed } from "./clamp3.mjs";

const [folder, ...tunes] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const { sizes } = JSON.parse(readFileSync(`${folder}/onnx.json`, "utf-8"));
const session = await ort.InferenceSession.create(readFileSync(`${folder}/symbolic.onnx`));
for (const tune of tunes) {
  try {
    console.log(JSON.stringify([...(await embed(ort, session, sizes, readFileSync(tune, "utf-8")))]));
  } catch (error) {
    console.log(JSON.stringify({ error: error.message }));
  }
}
