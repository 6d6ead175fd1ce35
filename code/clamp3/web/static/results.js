// A result: what is told of a file, its view, and why it was found.

import { ask } from "./asking.js";
import { barsFor, clock, show } from "./views.js";

const KINDS = { score: "score", midi: "MIDI", audio: "recording", text: "text" };
const STRONGEST = 5; // places that are named
const FAINT = 0.2; // the strength below which nothing is coloured

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.load();
  }
}, { rootMargin: "300px" });

// The element of a record. `does`: what its buttons do, each called with the record; `why` gives an explanation.
export function resultOf(record, does) {
  const item = document.querySelector("#result").content.cloneNode(true).firstElementChild;
  const [place, remarks, button] = [".view", ".remarks", ".explain"].map((name) => item.querySelector(name));
  item.querySelector("h2").textContent = `${record.rank}. ${record.name}`;
  item.querySelector(".facts").append(...factsOf(record));
  item.querySelector(".save").href = `/files/${record.id}/raw`;
  for (const name of ["more", "also", "without"]) {
    item.querySelector(`.${name}`).addEventListener("click", () => does[name](record));
  }
  let shown = null; // the view, once it is there

  place.load = async (isNumbered = Boolean(record.passage)) => {
    try {
      const found = await ask(`/files/${record.id}?bars=${barsFor(place)}&numbered=${isNumbered}`);
      if (!place.isConnected) return;
      place.replaceChildren();
      shown = { ...show(place, found), isNumbered };
      if (record.passage) shown.mark("passage", [spanOf(record.passage)]);
      if (record.passage) shown.seek(spanOf(record.passage).first);
      remarks.textContent = shown.remarks.join(" · ");
    } catch (error) {
      remarks.textContent = `Not shown: ${error.message}`;
    }
  };

  button.addEventListener("click", async () => {
    const panel = item.querySelector(".reasons");
    if (!panel.hidden) {
      panel.hidden = true;
      button.setAttribute("aria-expanded", "false");
      return shown?.mark("why", []);
    }
    button.disabled = true;
    panel.hidden = false;
    panel.textContent = "Looking where the similarity comes from…";
    try {
      const found = await does.why(record);
      if (!item.isConnected) return;
      if (!shown?.isNumbered) await place.load(true);
      explain(panel, found, (first) => shown?.seek(first));
      shown?.mark("why", strongest(found.item));
    } catch (error) {
      panel.textContent = `No explanation: ${error.message}.`;
    }
    button.disabled = false;
    button.setAttribute("aria-expanded", "true");
    button.focus();
  });
  seen.observe(place);
  return item;
}

function factsOf(record) {
  const facts = [`similarity ${record.cosine.toFixed(3)}`];
  if (record.percentile !== undefined) facts.push(`closer than ${record.percentile} % of the collection`);
  if (KINDS[record.kind]) facts.push(KINDS[record.kind]);
  if (record.passage) {
    const closest = `closest: ${named(spanOf(record.passage))}`;
    facts.push(Object.assign(document.createElement("span"), { className: "passage", textContent: closest }));
  }
  for (const [name, value] of Object.entries(record.metadata)) facts.push(`${name}: ${value}`);
  return facts.flatMap((fact, place) => (place ? [" · ", fact] : [fact]));
}

function spanOf(passage) {
  const [[unit, [first, last]]] = Object.entries(passage);
  return { unit, first, last };
}

function named({ unit, first, last }) {
  if (unit === "seconds") return `${clock(first)}–${clock(last)}`;
  const one = { bars: "bar", lines: "line", words: "word" }[unit];
  return first === last ? `${one} ${first}` : `${one}s ${first}–${last}`;
}

// The places that add more than the average one does, the strongest first, each with a `strength` from 0 to 1. What is
// said of several bars, as of the messages of MIDI, counts for each of them alike.
function strongest(shares) {
  const places = new Map();
  for (const one of shares) {
    const bars = one.unit === "bars" ? one.last - one.first + 1 : 1;
    for (let step = 0; step < bars; step++) {
      const own = one.unit === "bars" ? { ...one, first: one.first + step, last: one.first + step } : one;
      const name = `${own.unit} ${own.first} ${own.of}`;
      places.set(name, { ...own, share: one.share / bars + (places.get(name)?.share || 0) });
    }
  }
  const ranked = [...places.values()].sort((one, other) => other.share - one.share).filter((one) => one.share > 0);
  if (!ranked.length) return [];
  const average = ranked.length > 1 ? ranked.reduce((sum, one) => sum + one.share, 0) / ranked.length : 0;
  const above = ranked[0].share - average;
  if (above < 1e-6) return ranked.map((one) => ({ ...one, strength: 1 })); // all alike
  return ranked.map((one) => ({ ...one, strength: (one.share - average) / above })).filter((one) => one.strength >= FAINT);
}

function explain(panel, found, seek) {
  panel.replaceChildren();
  const add = (title, shares, make) => {
    const line = document.createElement("p");
    line.append(Object.assign(document.createElement("span"), { className: "title", textContent: title }));
    for (const one of strongest(shares).slice(0, STRONGEST)) {
      const mark = make(one);
      mark.classList.add("share", `strength-${Math.max(Math.ceil(one.strength * 4), 1)}`);
      mark.title = `adds ${one.share.toFixed(3)}`;
      line.append(mark, " ");
    }
    if (line.children.length > 1) panel.append(line);
  };
  add("In the query", found.query, (one) => {
    const said = one.unit === "words" ? one.text : named(one);
    return Object.assign(document.createElement("mark"), { textContent: one.of ? `${said} of ${one.of}` : said });
  });
  add("In this file", found.item, (one) => {
    if (one.unit === "words") return Object.assign(document.createElement("mark"), { textContent: one.text });
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: named(one) });
    button.addEventListener("click", () => seek(one.first));
    return button;
  });
  const note = "What adds most to the similarity: the darker, the more.";
  panel.append(Object.assign(document.createElement("p"), { className: "note", textContent: note }));
}
