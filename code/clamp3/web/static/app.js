// The page: searches, and shows what is found. The address says what is searched for, so that it can be shared.

import { silence } from "./player.js";
import { barsFor, named, show } from "./views.js";

const find = (selector) => document.querySelector(selector);
const [form, text, file, kind, count, by] = ["#search", "#text", "#file", "#kind", "#count", "#by"].map(find);
const KINDS = { score: "score", midi: "MIDI", audio: "recording", text: "text", symbolic: "score or MIDI", feature: "features" };
const LISTS = ["also", "without", "where"]; // of what an address may name several
const STRONGEST = 5; // places that an explanation shows
const names = new Map(); // of files, by their ids
let folder = ""; // in which all files are
let explains = true; // whether the server can say why something was found
let searches = 0; // that were begun: the answer to an earlier one is not shown any more
let uploaded = null; // the file that is searched with, if it is one; it has no address

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ? said.error.message : `The server failed (${answer.status}).`);
  return said;
}

function tell(status, problem = "") {
  find("#status").textContent = status;
  find("#problem").textContent = problem;
}

// A file's name without the folder that all have in common.
const shortened = (name) => (folder && name.startsWith(folder) ? name.slice(folder.length) : name);

function make(name, values, ...children) {
  const element = Object.assign(document.createElement(name), values);
  element.append(...children);
  return element;
}

// ---------- addresses ----------

function asked() {
  const address = new URLSearchParams(location.search);
  const chosen = (select, name) => [...select.options].find((one) => one.value === address.get(name))?.value;
  const lists = LISTS.map((name) => [name, [...new Set(address.getAll(name))]]);
  return {
    q: address.get("q"), like: address.get("like"), ...Object.fromEntries(lists),
    kind: chosen(kind, "kind") || "", count: chosen(count, "count") || "10", passages: chosen(by, "passages") || "",
  };
}

function addressOf(wanted) {
  const address = new URLSearchParams();
  for (const name of ["q", "like"]) if (wanted[name]) address.set(name, wanted[name]);
  for (const name of ["also", "without"]) for (const one of wanted[name]) address.append(name, one);
  if (wanted.kind) address.set("kind", wanted.kind);
  for (const one of wanted.where) address.append("where", one);
  if (wanted.passages) address.set("passages", "1");
  if (wanted.count !== "10") address.set("count", wanted.count);
  const said = address.toString();
  return said ? `/?${said}` : "/";
}

// Changes what is searched for; what is not named in `changes` stays.
function go(changes) {
  const wanted = { ...asked(), ...changes };
  if (wanted.q || wanted.like) uploaded = null;
  else if (!uploaded && wanted.also.length) [wanted.like, ...wanted.also] = wanted.also;
  const address = addressOf(wanted);
  if (address !== location.pathname + location.search) history.pushState(null, "", address);
  return fromAddress();
}

function fromAddress() {
  const wanted = asked();
  if (!uploaded) file.value = "";
  text.value = wanted.q || "";
  for (const [select, value] of [[kind, wanted.kind], [count, wanted.count], [by, wanted.passages]]) select.value = value;
  showChips(wanted);
  if (wanted.q || wanted.like || uploaded) return search(wanted);
  searches++;
  clear();
  document.title = "CLaMP 3 search";
  return tell("");
}

// What the server is asked, as pairs: what to search for, and with `terms` what may be found.
function* parameters(wanted, terms = true) {
  if (uploaded) yield ["file", uploaded];
  else yield wanted.like ? ["like", wanted.like] : ["q", wanted.q];
  for (const name of ["also", "without"]) for (const one of wanted[name]) yield [name, one];
  if (!terms) return;
  yield ["top_k", wanted.count];
  if (wanted.kind) yield [wanted.kind === "symbolic" ? "modality" : "kind", wanted.kind];
  for (const one of wanted.where) yield ["where", one];
  if (wanted.passages) yield ["passages", "true"];
}

function request(address, pairs) {
  const all = uploaded ? new FormData() : new URLSearchParams();
  for (const pair of pairs) all.append(...pair);
  return uploaded ? ask(address, { method: "POST", body: all }) : ask(`${address}?${all}`);
}

// ---------- chips ----------

function showChips(wanted) {
  const chips = [];
  const chip = (name, said, remove) => {
    const item = find("#chip").content.cloneNode(true).firstElementChild;
    const [label, button] = item.children;
    item.classList.add(name);
    label.textContent = said;
    button.setAttribute("aria-label", `Remove ${said}`);
    button.addEventListener("click", () => { remove(); text.focus(); });
    chips.push(item);
    return label;
  };
  const ofFile = (name, before, id, remove) => {
    const label = chip(name, `${before} ${names.get(id) || "…"}`, remove);
    if (!names.has(id)) nameOf(id).then((said) => { label.textContent = `${before} ${said}`; });
  };
  if (uploaded) chip("like", `Like ${uploaded.name}`, () => { uploaded = null; go({}); });
  if (wanted.like) ofFile("like", "Like", wanted.like, () => go({ like: null }));
  for (const [name, before] of [["also", "Also"], ["without", "Without"]]) {
    for (const id of wanted[name]) ofFile(name, before, id, () => go({ [name]: wanted[name].filter((one) => one !== id) }));
  }
  for (const one of wanted.where) chip("where", one, () => go({ where: wanted.where.filter((other) => other !== one) }));
  find("#chips").replaceChildren(...chips);
  find("#chips").hidden = !chips.length;
}

async function nameOf(id) {
  try {
    names.set(id, shortened((await ask(`/files/${encodeURIComponent(id)}/name`)).file));
  } catch {
    return "a file that is not here";
  }
  return names.get(id);
}

// ---------- searches ----------

function clear() {
  silence();
  find("#results").replaceChildren();
}

async function search(wanted) {
  const number = ++searches;
  clear();
  tell("Searching…");
  try {
    const records = await request("/search", parameters(wanted));
    if (number !== searches) return;
    records.forEach((record) => add(record, wanted));
    const [first] = records;
    const of = uploaded ? uploaded.name : wanted.q ? `“${wanted.q}”` : await nameOf(wanted.like);
    if (number !== searches) return;
    const remarks = first && first.remarks && first.remarks.length ? ` Read with remarks: ${first.remarks.join("; ")}.` : "";
    const caption = first?.caption ? ` The picture, in words: “${first.caption}”.` : "";
    tell((first ? `${records.length} closest to ${of}.` : "Nothing of this kind is in the collection.") + caption + remarks);
    document.title = `${of} – CLaMP 3 search`;
  } catch (error) {
    if (number === searches) tell("", error.message);
  }
}

function searchFile(chosen) {
  uploaded = chosen;
  return go({ q: null, like: null, also: [], without: [] });
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    entry.target.load();
  }
}, { rootMargin: "300px" });

function add(record, wanted) {
  const item = find("#result").content.cloneNode(true).firstElementChild;
  const part = (name) => item.querySelector(`.${name}`);
  const view = part("view");
  names.set(record.id, shortened(record.file));
  const facts = [`similarity ${record.cosine.toFixed(3)}`];
  if (record.melody) facts.push(`melody ${record.melody.toFixed(3)}`);
  if (record.percentile !== undefined) facts.push(`closer than ${record.percentile} % of the collection`);
  facts.push(KINDS[record.kind || record.modality]);
  for (const [name, value] of Object.entries(record.metadata)) facts.push(`${name}: ${value}`);
  item.querySelector("h2").textContent = `${record.rank}. ${shortened(record.file)}`;
  part("facts").textContent = facts.filter(Boolean).join(" · ");
  part("save").href = `/files/${record.id}/raw`;
  for (const [unit, [first, last]] of Object.entries(record.passage || {})) {
    part("passage").textContent = `Closest passage: ${named({ unit, first, last })}`;
    part("passage").hidden = false;
    part("passage").classList.add(unit);
  }
  const onClick = (name, call) => part(name).addEventListener("click", call);
  const goTo = (changes) => { go(changes); find("#status").focus(); scrollTo(0, 0); };
  onClick("like", () => goTo({ q: null, like: record.id, also: [], without: [] }));
  for (const [name, other] of [["also", "without"], ["without", "also"]]) {
    onClick(name, () => {
      const { [name]: some, [other]: others } = asked();
      goTo({ [name]: [...some, record.id], [other]: others.filter((one) => one !== record.id) });
    });
  }
  part("explain").hidden = !explains;
  onClick("explain", () => explain(item, record, wanted));
  view.load = () => load(item, record, Boolean(record.passage));
  find("#results").append(item);
  seen.observe(view);
}

// Shows a file; `numbered` is a score whose bars can be marked.
async function load(item, record, numbered) {
  const view = item.querySelector(".view");
  let remarks;
  try {
    const found = await ask(`/files/${record.id}?bars=${barsFor(view)}&numbered=${numbered}`);
    if (!view.isConnected) return;
    if (view.firstChild) silence(); // it is drawn anew; others that are drawn later let what sounds go on
    view.replaceChildren();
    remarks = show(view, found, record.passage);
    view.isNumbered = numbered || found.kind !== "score";
  } catch (error) {
    remarks = [`Not shown: ${error.message}`];
  }
  item.querySelector(".remarks").textContent = remarks.join(" · ");
}

// ---------- explanations ----------

async function explain(item, record, wanted) {
  const [button, why, view] = ["explain", "why", "view"].map((name) => item.querySelector(`.${name}`));
  const isShown = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!isShown));
  why.hidden = isShown;
  if (isShown) return view.colour?.([]);
  why.replaceChildren("Looking for the reasons…");
  try {
    const pairs = [...parameters(wanted, false), ["id", record.id], ["top_k", STRONGEST]];
    const found = await request("/explain", pairs);
    seen.unobserve(view);
    if (!view.isNumbered) await load(item, record, true);
    if (why.hidden || !why.isConnected) return;
    view.colour?.(found.item);
    why.replaceChildren(...reasons(found, view));
  } catch (error) {
    why.replaceChildren(`Not explained: ${error.message}`);
  }
}

function* reasons(found, view) {
  const strength = ({ share }) => make("span", { className: "share", textContent: ` ${share < 0 ? "−" : "+"}${Math.abs(share).toFixed(3)}` });
  const list = (label, places, shown) => (
    make("p", {}, `${label} `, ...places.flatMap((place) => [make("span", { className: "place" }, shown(place), strength(place)), " "]))
  );
  const strong = (place) => make("b", { textContent: place.of ? `${named(place)} of ${shortened(place.of)}` : named(place) });
  const audio = view.querySelector("audio");
  const jump = (place) => {
    if (place.unit !== "seconds" || !audio) return make("b", { textContent: named(place) });
    const button = make("button", { type: "button", className: "quiet", textContent: named(place) });
    button.addEventListener("click", () => { audio.currentTime = place.first; audio.play(); });
    return button;
  };
  if (found.query.length) yield list("In what was searched for:", found.query, strong);
  if (found.item.length) yield list(`What adds most to the whole piece's similarity, ${found.cosine.toFixed(3)}:`, found.item, jump);
  if (found.item.some(({ unit }) => unit === "bars")) yield make("p", { className: "legend", textContent: "These bars are coloured." });
}

// ---------- what the user does ----------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (text.value.trim()) go({ q: text.value.trim(), like: null });
  else if (uploaded || asked().like) go({ q: null });
  else tell("", "Type what you are looking for, or choose a file.");
});
file.addEventListener("change", () => { if (file.files.length) searchFile(file.files[0]); });
for (const filter of [kind, count, by]) {
  filter.addEventListener("change", () => {
    const typed = text.value.trim();
    go({ kind: kind.value, count: count.value, passages: by.value, ...(typed ? { q: typed, like: null } : {}) });
  });
}
find("#metadata").addEventListener("submit", (event) => {
  event.preventDefault();
  const condition = `${find("#column").value}${find("#operator").value}${find("#value").value.trim()}`;
  find("#value").value = "";
  go({ where: [...asked().where.filter((one) => one !== condition), condition] });
});
addEventListener("popstate", () => { uploaded = null; fromAddress(); });
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
addEventListener("dragleave", () => document.body.classList.remove("dropping"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) searchFile(event.dataTransfer.files[0]);
});

// ---------- start ----------

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });

async function waitForCollection() {
  const [progress, bar] = ["#progress", "#bar"].map(find);
  for (;;) {
    const now = await ask("/healthz");
    find("#collection").textContent = now.collection;
    explains = now.explain;
    file.accept = [...now.extensions, "image/*"].join(",");
    if (now.state === "failed") {
      progress.hidden = true;
      throw new Error(now.reason);
    }
    progress.hidden = now.state === "ready";
    if (now.state === "ready") {
      const failures = find("#failures");
      failures.hidden = !now.failures.length;
      failures.querySelector("summary").textContent = `${now.failures.length} ${now.failures.length === 1 ? "file" : "files"} could not be read`;
      failures.querySelector("ul").replaceChildren(...now.failures.map((failure) => (
        make("li", { textContent: `${failure.file}: ${failure.reason}` })
      )));
      return;
    }
    if (now.total) Object.assign(bar, { max: now.total, value: now.done });
    find("#far").textContent = now.total ? `${now.done} of ${now.total} files` : "";
    await pause(500);
  }
}

// What can be asked of this collection: its columns of metadata, with their values.
async function offerColumns() {
  const { columns, folder: common } = await ask("/collection");
  folder = common;
  const [column, values] = ["#column", "#values"].map(find);
  const offer = () => values.replaceChildren(...(columns[column.value] || []).map((value) => make("option", { value })));
  column.replaceChildren(...Object.keys(columns).map((name) => make("option", { value: name, textContent: name })));
  column.addEventListener("change", offer);
  find("#metadata").hidden = !column.options.length;
  offer();
}

// Tells how far a folder's passages are, and offers them once they are there.
async function waitForPassages() {
  const told = find("#passages");
  for (;;) {
    const { passages } = await ask("/healthz");
    find("#by-label").hidden = passages.state !== "ready";
    told.hidden = passages.state !== "making";
    if (told.hidden) break;
    told.textContent = `Looking for passages in the background: ${passages.done} of ${passages.total} files.`;
    await pause(1000);
  }
  if (asked().passages && !document.querySelector(".result")) fromAddress();
}

async function start() {
  await waitForCollection();
  await offerColumns();
  const typed = text.value; // meanwhile
  const shown = fromAddress();
  text.value ||= typed;
  await shown;
  await waitForPassages();
}

start().catch((error) => tell("", error.message));
