// The map: draws the points, and shows the piece that is pointed at. Names and music are only ever set as text.

const { points, names, kinds, groups, colours, group, labels, by, music, reasons, notes: heldBack, answers } = JSON.parse(
  document.getElementById("data").textContent,
);
const canvas = document.getElementById("map");
const panel = document.getElementById("piece");
const DELAY = 120; // milliseconds for which one points at a piece before it is engraved
const REACH = 12; // pixels
const look = { scale: 1, x: 0, y: 0 }; // of the map, as it is moved and enlarged
let [pointed, held, marked, waiting, drag] = [-1, -1, new Set(), 0, null];

function place(index) { // in pixels of the page
  const { width, height } = canvas.getBoundingClientRect();
  const half = Math.min(width, height) / 2 - 16;
  return [
    width / 2 + (points[index][0] * look.scale + look.x) * half,
    height / 2 - (points[index][1] * look.scale + look.y) * half,
  ];
}

function redraw() {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const radius = Math.min(Math.max(60 / Math.sqrt(points.length), 2), 5) * Math.min(look.scale, 2);
  const dot = (index, size, colour) => {
    const [x, y] = place(index);
    pen.fillStyle = colour;
    pen.beginPath();
    pen.arc(x, y, size, 0, 2 * Math.PI);
    pen.fill();
  };
  pen.globalAlpha = 0.75;
  points.forEach((_, index) => dot(index, radius, colours[group[index]]));
  pen.globalAlpha = 1;
  for (const index of marked) dot(index, radius + 1, "#000000");
  for (const index of [held, pointed]) {
    if (index < 0) continue;
    dot(index, radius + 4, "#000000");
    dot(index, radius + 2, colours[group[index]]);
  }
}

function closest(x, y, reach = REACH) {
  let [best, least] = [-1, reach];
  points.forEach((_, index) => {
    const [left, top] = place(index);
    const distance = Math.hypot(left - x, top - y);
    if (distance < least) [best, least] = [index, distance];
  });
  return best;
}

function present(index) {
  if (Number(panel.dataset.index) === index) return;
  silence();
  panel.dataset.index = index;
  panel.querySelector("h2").textContent = names[index];
  panel.querySelector(".facts").textContent = [kinds[index], by === "kind" ? "" : `${by}: ${labels[index]}`].filter(Boolean).join(" · ");
  const view = panel.querySelector(".view");
  view.replaceChildren();
  let remarks;
  try {
    remarks = show(view, music[index] || { kind: "none", reason: reasons[index] });
  } catch (error) {
    view.replaceChildren();
    remarks = [`Not shown: ${error.message}`];
  }
  panel.querySelector(".remarks").textContent = remarks.join(" · ");
}

function point(index) {
  pointed = index;
  canvas.title = index < 0 ? "" : names[index];
  clearTimeout(waiting);
  if (index >= 0 && held < 0) waiting = setTimeout(() => present(index), DELAY);
  redraw();
}

function hold(index, andPlay) {
  clearTimeout(waiting);
  held = index;
  if (index >= 0) present(index);
  redraw();
  if (index >= 0 && andPlay) panel.querySelector(".play")?.click();
}

// ---------- what the user does ----------

canvas.addEventListener("pointermove", (event) => {
  if (drag) {
    const half = Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 16;
    look.x = drag.x + (event.clientX - drag.left) / half;
    look.y = drag.y - (event.clientY - drag.top) / half;
    drag.moved ||= Math.hypot(event.clientX - drag.left, event.clientY - drag.top) > 4;
    return redraw();
  }
  const index = closest(event.offsetX, event.offsetY);
  if (index !== pointed) point(index);
});
canvas.addEventListener("pointerdown", (event) => {
  drag = { left: event.clientX, top: event.clientY, x: look.x, y: look.y, moved: false };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointerup", (event) => {
  if (drag && !drag.moved) hold(closest(event.offsetX, event.offsetY), true);
  drag = null;
});
canvas.addEventListener("pointercancel", () => { drag = null; });
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { width, height } = canvas.getBoundingClientRect();
  const half = Math.min(width, height) / 2 - 16;
  const [x, y] = [(event.offsetX - width / 2) / half, (height / 2 - event.offsetY) / half];
  const scale = Math.min(Math.max(look.scale * 1.002 ** -event.deltaY, 1), 100);
  look.x = x - (x - look.x) * scale / look.scale;
  look.y = y - (y - look.y) * scale / look.scale;
  look.scale = scale;
  if (scale === 1) look.x = look.y = 0;
  redraw();
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const to = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (event.key === "Enter" && pointed >= 0) hold(pointed, true);
  else if (event.key === "Escape") hold(-1);
  else if (!to) return;
  else if (pointed < 0) point(0);
  else point(next(to));
  event.preventDefault();
});

function next([right, up]) { // the closest piece that lies that way
  const [x, y] = points[pointed];
  let [best, least] = [pointed, Infinity];
  points.forEach(([left, top], index) => {
    const [along, across] = [(left - x) * right + (top - y) * up, (left - x) * up + (top - y) * right];
    const distance = Math.hypot(along, 2 * across);
    if (along > 0 && along >= Math.abs(across) && distance < least) [best, least] = [index, distance];
  });
  return best;
}

document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  const found = wanted ? names.flatMap((name, index) => (name.toLowerCase().includes(wanted) ? [index] : [])) : [];
  marked = new Set(found);
  document.getElementById("found").textContent = wanted ? `${found.length} found` : "";
  if (found.length) hold(found[0]);
  else redraw();
});

// ---------- start ----------

groups.forEach((name, index) => {
  const item = document.createElement("li");
  const mark = document.createElementNS(SVG, "svg");
  mark.setAttribute("viewBox", "0 0 2 2");
  const circle = document.createElementNS(SVG, "circle");
  for (const [key, value] of Object.entries({ cx: 1, cy: 1, r: 1, fill: colours[index] })) circle.setAttribute(key, value);
  mark.append(circle);
  item.append(mark, `${name} (${group.filter((one) => one === index).length})`);
  document.getElementById("legend").append(item);
});
for (const { query, found } of answers) {
  const item = document.createElement("details");
  const summary = document.createElement("summary");
  const list = document.createElement("ol");
  summary.textContent = query;
  for (const [index, cosine] of found) {
    const line = document.createElement("li");
    const button = document.createElement("button");
    const figure = document.createElement("span");
    button.type = "button";
    button.textContent = names[index];
    figure.textContent = ` ${cosine.toFixed(3)}`;
    button.addEventListener("click", () => hold(index, true));
    line.append(button, figure);
    list.append(line);
  }
  item.append(summary, list);
  item.addEventListener("toggle", () => {
    if (!item.open) return;
    for (const other of document.querySelectorAll("#answers details")) other.open = other === item;
    marked = new Set(found.map(([index]) => index));
    hold(found[0][0]);
  });
  document.getElementById("answers").append(item);
}
document.getElementById("answers").hidden = !answers.length;
if (heldBack) document.getElementById("help").append(` ${heldBack}`);
addEventListener("resize", redraw);
redraw();
document.body.dataset.ready = points.length;
