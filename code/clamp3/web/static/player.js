// Plays lists of notes on a piano: 27 recordings of single keys, and those between them by playing one faster or slower.

const KEYS = Array.from({ length: 27 }, (_, index) => 27 + 3 * index); // MIDI numbers
const AHEAD = 0.6; // seconds for which notes are handed to the browser
const TICK = 100; // milliseconds between two looks
const RELEASE = 0.15; // seconds in which a note fades once its key is up
const samples = new Map();
let context = null;
let output = null;
let playing = null; // the one player that sounds

// Browsers allow sound once the user has done something, so this is called from there.
export function audio() {
  if (!context) {
    context = new AudioContext();
    output = new DynamicsCompressorNode(context, { threshold: -18, ratio: 6 });
    output.connect(context.destination);
    const show = () => { document.body.dataset.audio = context.state; };
    context.addEventListener("statechange", show);
    show();
  }
  return context;
}

function nearest(pitch) {
  return KEYS.reduce((best, key) => (Math.abs(key - pitch) < Math.abs(best - pitch) ? key : best));
}

// A page that has no server brings its recordings along, in base64.
async function recording(key) {
  if (globalThis.PIANO) return Uint8Array.from(atob(PIANO[key]), (letter) => letter.charCodeAt(0)).buffer;
  const answer = await fetch(`/static/piano/${key}.mp3`);
  if (!answer.ok) throw new Error("The piano's sounds could not be loaded.");
  return answer.arrayBuffer();
}

function sample(key) {
  if (!samples.has(key)) {
    const loading = recording(key).then((bytes) => context.decodeAudioData(bytes));
    loading.catch(() => samples.delete(key)); // to be tried again
    samples.set(key, loading);
  }
  return samples.get(key);
}

// Stops whatever is playing.
export function silence() {
  if (playing) playing.pause();
}

export class Player {
  // `notes`: [second, seconds, key, velocity] in order; `show(second, isPlaying)` is called meanwhile.
  constructor(notes, show) {
    this.notes = notes;
    this.show = show;
    this.duration = notes.reduce((end, note) => Math.max(end, note[0] + note[1]), 0);
    this.position = 0;
    this.timer = null;
    this.sources = new Set();
  }

  get isPlaying() {
    return this.timer !== null;
  }

  now() {
    return this.isPlaying ? Math.min(context.currentTime - this.origin, this.duration) : this.position;
  }

  async play() {
    if (playing && playing !== this) playing.pause();
    playing = this;
    audio();
    await context.resume();
    const keys = [...new Set(this.notes.map((note) => nearest(note[2])))];
    const loaded = await Promise.all(keys.map(sample));
    this.buffers = new Map(keys.map((key, index) => [key, loaded[index]]));
    if (playing !== this || this.isPlaying) return;
    if (this.position >= this.duration - 0.05) this.position = 0;
    this.origin = context.currentTime + 0.05 - this.position;
    this.next = this.notes.findIndex((note) => note[0] >= this.position - 0.01);
    if (this.next < 0) this.next = this.notes.length;
    this.timer = setInterval(() => this.tick(), TICK);
    this.tick();
  }

  pause() {
    this.position = this.now();
    clearInterval(this.timer);
    this.timer = null;
    for (const source of this.sources) source.stop();
    this.sources.clear();
    this.show(this.position, false);
  }

  seek(second) {
    const wasPlaying = this.isPlaying;
    if (wasPlaying) this.pause();
    this.position = second;
    this.show(second, false);
    if (wasPlaying) this.play();
  }

  tick() {
    const now = context.currentTime - this.origin;
    while (this.next < this.notes.length && this.notes[this.next][0] < now + AHEAD) this.sound(this.notes[this.next++]);
    if (now > this.duration + RELEASE) {
      this.pause();
      this.position = 0;
      this.show(0, false);
    } else {
      this.show(Math.max(Math.min(now, this.duration), 0), true);
    }
  }

  sound([start, length, pitch, velocity]) {
    const key = nearest(pitch);
    const at = Math.max(this.origin + start, context.currentTime);
    const end = Math.max(this.origin + start + length, at + 0.05);
    const source = new AudioBufferSourceNode(context, {
      buffer: this.buffers.get(key), playbackRate: 2 ** ((pitch - key) / 12),
    });
    const gain = new GainNode(context, { gain: (velocity / 127) ** 1.5 });
    gain.gain.setValueAtTime(gain.gain.value, end);
    gain.gain.linearRampToValueAtTime(0, end + RELEASE);
    source.connect(gain).connect(output);
    source.start(at);
    source.stop(end + RELEASE);
    this.sources.add(source);
    source.addEventListener("ended", () => this.sources.delete(source));
  }
}
