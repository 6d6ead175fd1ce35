// What is shown of a file, by the kind of its view: engraved, drawn, read or heard.

import { MarkedRoll, MarkedScore, svg } from "./marks.js";
import { Player, silence } from "./player.js";

// How many bars of a score go on a line of `place`. (abcjs could break lines itself, but gets signatures wrong then.)
export function barsFor(place) {
  return place.clientWidth < 500 ? 2 : 4;
}

// Fills `place` with a view, as the server describes it, and marks the `passage` that was found, if any.
// Returns remarks for people, and what colours the places that explain a match.
export function show(place, found, passage) {
  const remarks = found.remarks || [];
  const shown = { score: engrave, notes: draw, text: write, sound: listen }[found.kind];
  if (!shown) return { remarks: [...remarks, `Not shown: ${found.reason}.`], colour: () => {} };
  const { said = [], colour = () => {} } = shown(place, found, passage);
  return { remarks: [...remarks, ...said], colour };
}

function engrave(place, { abc, places = [] }, passage) {
  const paper = document.createElement("div");
  paper.className = "score";
  place.append(paper);
  const width = Math.max(Math.min(place.clientWidth, 900) - 40, 260);
  const [tune] = ABCJS.renderAbc(paper, abc, {
    staffwidth: width,
    add_classes: true,
    paddingleft: 0,
    paddingright: 12,
  });
  paper.querySelector("svg")?.setAttribute("role", "img");
  const sequence = tune.setUpAudio();
  const meter = tune.getMeterFraction();
  const whole = tune.millisecondsPerMeasure() / 1000 / (meter.num / meter.den); // seconds of a whole note
  const notes = sequence.tracks.flat().filter((event) => event.cmd === "note").map((event) => (
    [event.start * whole, event.duration * whole, event.pitch, event.volume]
  )).sort((first, second) => first[0] - second[0]);
  tune.setTiming();
  let sounding = [];
  const player = addPlayer(place, notes, (second, isPlaying) => {
    sounding.forEach((element) => element.classList.remove("sounding"));
    const event = isPlaying && tune.noteTimings.findLast((one) => one.type === "event" && one.milliseconds <= second * 1000);
    sounding = event ? (event.elements || []).flat() : [];
    sounding.forEach((element) => element.classList.add("sounding"));
  });
  const marked = new MarkedScore(paper, tune, places);
  markBars(marked, player, passage);
  const count = (tune.warnings || []).length;
  const said = count ? [`The engraver passed over ${count} sign${count > 1 ? "s" : ""} that it does not know.`] : [];
  return { said, colour: (shares) => marked.colour(shares) };
}

// Shades the bars of a passage, with which the player begins.
function markBars(marked, player, passage) {
  if (!passage?.bars) return;
  marked.shade(passage.bars);
  player.seek(marked.second(passage.bars[0]));
}

function draw(place, { notes, bars = [] }, passage) {
  const keys = notes.map((note) => note[2]);
  const [low, high] = [Math.min(...keys) - 1, Math.max(...keys) + 1];
  const end = Math.max(...notes.map((note) => note[0] + note[1]), 0.1);
  const height = high - low + 1;
  const roll = svg("svg", {
    class: "roll",
    role: "img",
    "aria-label": `${notes.length} notes over ${Math.round(end)} seconds`,
    viewBox: `0 0 1000 ${height}`,
    preserveAspectRatio: "none",
  });
  for (const [start, length, key] of notes) {
    const width = Math.max(length / end * 1000, 0.5);
    roll.append(svg("rect", { class: "note", x: start / end * 1000, y: high - key, width, height: 0.9 }));
  }
  const line = svg("line", { x1: 0, x2: 0, y1: 0, y2: height });
  roll.append(line);
  place.append(roll);
  const player = addPlayer(place, notes, (second) => {
    line.setAttribute("x1", second / end * 1000);
    line.setAttribute("x2", second / end * 1000);
  });
  const marked = new MarkedRoll(roll, bars, 1000 / end, height);
  markBars(marked, player, passage);
  return { colour: (shares) => marked.colour(shares) };
}

function write(place, { text }, passage) {
  const sheet = document.createElement("pre");
  const [first, last] = passage?.lines || [0, 0];
  text.split("\n").forEach((line, index, lines) => {
    const isFound = lines.length > 1 && index + 1 >= first && index + 1 <= last;
    sheet.append(isFound ? Object.assign(document.createElement("mark"), { textContent: line }) : line);
    if (index + 1 < lines.length) sheet.append("\n");
  });
  place.append(sheet);
  return {};
}

function listen(place, found, passage) {
  const audio = document.createElement("audio");
  const start = passage?.seconds ? passage.seconds[0] : 0;
  audio.controls = true;
  audio.preload = "metadata";
  audio.src = found.address + (start ? `#t=${start}` : "");
  audio.setAttribute("aria-label", `Recording ${found.file}`);
  audio.addEventListener("play", () => {
    silence();
    document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); });
  });
  audio.addEventListener("error", () => {
    place.append(Object.assign(document.createElement("p"), { textContent: "This recording cannot be played here." }));
  });
  place.append(audio);
  return {};
}

function clock(second) {
  return `${Math.floor(second / 60)}:${String(Math.floor(second % 60)).padStart(2, "0")}`;
}

function addPlayer(place, notes, follow) {
  const bar = document.querySelector("#player").content.cloneNode(true).firstElementChild;
  const [button, position, time] = ["play", "position", "time"].map((name) => bar.querySelector(`.${name}`));
  const player = new Player(notes, (second, isPlaying) => {
    button.textContent = isPlaying ? "Pause" : "Play";
    position.value = second;
    time.textContent = `${clock(second)} / ${clock(player.duration)}`;
    follow(second, isPlaying);
  });
  position.max = player.duration;
  time.textContent = `0:00 / ${clock(player.duration)}`;
  button.addEventListener("click", async () => {
    document.querySelectorAll("audio").forEach((audio) => audio.pause());
    if (player.isPlaying) return player.pause();
    try {
      await player.play();
    } catch (error) {
      time.textContent = error.message;
    }
  });
  position.addEventListener("input", () => player.seek(Number(position.value)));
  place.append(bar);
  return player;
}
