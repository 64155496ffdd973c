// What came of a call: the scene in a frame of its own, the views with their depth, files to save, time and memory.

const $ = (id) => document.getElementById(id);
const PICTURES = ["image", "depth", "confidence"];
const TABS = ["scene", "views", "save", "cost"];
const PHASES = {
  reading: "reading and resizing the files",
  image_encoder: "image encoder",
  geometry_encoder: "geometry encoder",
  aggregator: "aggregator",
  dense_head: "dense head",
  "post-processing": "post-processing",
};

export class ResultView {
  constructor(about, ask, visit) {
    this.about = about;
    this.ask = ask;
    this.visit = visit;
    this.taken = []; // up to two places: {view, x, y, point}
    this.cross = null;
    TABS.forEach((name) => {
      const tab = $(`tab-${name}`);
      tab.addEventListener("click", () => this.open(name));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const there = TABS.filter((other) => !$(`tab-${other}`).hidden);
        const next = there[(there.indexOf(name) + step + there.length) % there.length];
        this.open(next);
        $(`tab-${next}`).focus();
      });
    });
    $("previous").addEventListener("click", () => this.look(this.view - 1));
    $("next").addEventListener("click", () => this.look(this.view + 1));
    $("view").addEventListener("change", () => this.look($("view").selectedIndex));
    $("leave-out").addEventListener("change", () => this.listDownloads());
    for (const name of PICTURES) this.listenTo($(`at-${name}`));
  }

  open(name) {
    for (const other of TABS) {
      $(other).hidden = other !== name;
      $(`tab-${other}`).setAttribute("aria-selected", String(other === name));
      $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
    }
  }

  show(facts) {
    this.facts = facts;
    this.taken = [];
    this.cross = null;
    $("measured").textContent = "";
    $("tab-views").hidden = !facts.views.length;
    $("tab-save").hidden = !facts.downloads.length;
    $("tab-cost").hidden = !facts.seconds;
    const scene = `${this.visit()}/scene?result=${facts.number}`;
    $("viewer").contentWindow.location.replace(new URL(scene, location.href));
    this.listDownloads();
    if (facts.seconds) this.listCosts();
    if (!facts.views.length) return;
    $("view").replaceChildren(...facts.views.map((name, index) => make("option", { textContent: `${index + 1}: ${name}` })));
    for (const name of ["depth", "confidence"]) this.drawScale(name);
    this.look(0);
  }

  // The views

  look(view) {
    const count = this.facts.views.length;
    this.view = (view + count) % count;
    $("view").selectedIndex = this.view;
    for (const name of PICTURES) {
      $(name).src = `${this.visit()}/views/${this.view}/${name}?result=${this.facts.number}`;
      $(name).alt = `${name === "image" ? "Image" : `${name} as colours`} of ${this.facts.views[this.view]}`;
      $(`at-${name}`).setAttribute("aria-label", `${name} of ${this.facts.views[this.view]}, to measure in`);
    }
    this.drawMarks();
  }

  drawScale(name) {
    const limits = this.facts.limits[name];
    const scale = $(`${name}-scale`);
    scale.replaceChildren();
    if (!limits) return void scale.append(`no valid ${name}`);
    const bar = make("canvas", { width: 90, height: 10 });
    bar.setAttribute("aria-hidden", "true"); // its ends are told
    const pen = bar.getContext("2d");
    const colors = pen.createLinearGradient(0, 0, 90, 0);
    this.about.colors[name].forEach((color, index, all) => colors.addColorStop(index / (all.length - 1), `rgb(${color})`));
    pen.fillStyle = colors;
    pen.fillRect(0, 0, 90, 10);
    const unit = name === "depth" ? " m" : "";
    scale.append(limits[0].toPrecision(3) + unit, bar, limits[1].toPrecision(3) + unit);
  }

  // Measuring in pictures

  listenTo(picture) {
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const { width, height } = this.facts;
      const x = Math.floor(((event.clientX - box.left) / box.width) * width);
      const y = Math.floor(((event.clientY - box.top) / box.height) * height);
      this.take(Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1));
    });
    picture.addEventListener("focus", () => {
      this.cross ??= { x: Math.floor(this.facts.width / 2), y: Math.floor(this.facts.height / 2) };
      this.drawMarks();
    });
    picture.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (step) {
        const by = event.shiftKey ? 10 : 1;
        this.cross.x = Math.min(Math.max(this.cross.x + by * step[0], 0), this.facts.width - 1);
        this.cross.y = Math.min(Math.max(this.cross.y + by * step[1], 0), this.facts.height - 1);
      } else if (event.key === "Enter") this.take(this.cross.x, this.cross.y);
      else if (event.key === "Escape") this.forget();
      else return;
      event.preventDefault();
      this.drawMarks();
    });
  }

  forget() {
    this.taken = [];
    $("measured").textContent = "";
  }

  async take(x, y) {
    const { view } = this;
    const { number } = this.facts;
    this.cross = { x, y };
    let found;
    try {
      found = await this.ask(`views/${view}/point?x=${x}&y=${y}`);
    } catch (error) {
      $("measured").textContent = error.message;
      return;
    }
    if (number !== this.facts.number) return;
    const where = `Pixel ${x}, ${y}: `;
    if (!found.point) {
      $("measured").textContent = `${where}there is no point; choose another place.`;
    } else {
      if (this.taken.length === 2) this.taken = [];
      this.taken.push({ view, x, y, point: found.point });
      const depth = `${where}depth ${found.depth.toFixed(3)} m, confidence ${found.confidence.toPrecision(3)}. `;
      if (this.taken.length === 1) $("measured").textContent = `${depth}Choose the second place.`;
      else {
        const [a, b] = this.taken.map((place) => place.point);
        $("measured").textContent = `${depth}Distance: ${metres(Math.hypot(...a.map((value, axis) => value - b[axis])))}`;
      }
    }
    this.drawMarks();
  }

  drawMarks() {
    const { width, height } = this.facts;
    for (const name of PICTURES) {
      const picture = $(`at-${name}`);
      for (const mark of picture.querySelectorAll(".cross")) mark.remove();
      const places = this.taken.filter((place) => place.view === this.view).map((place) => ["cross taken", place]);
      if (this.cross) places.push(["cross", this.cross]);
      for (const [className, { x, y }] of places) {
        const mark = make("span", { className });
        mark.style.left = `${((x + 0.5) / width) * 100}%`;
        mark.style.top = `${((y + 0.5) / height) * 100}%`;
        picture.append(mark);
      }
    }
  }

  // Files, time and memory

  listDownloads() {
    const confidence = Math.min(Math.max($("leave-out").valueAsNumber || 0, 0), 99);
    $("downloads").replaceChildren(
      ...this.facts.downloads.map(([name, label]) => {
        const link = make("a", { className: "button", textContent: label, href: `${this.visit()}/downloads/${name}?confidence=${confidence}` });
        link.setAttribute("download", "");
        const item = make("li", {});
        item.append(link);
        return item;
      }),
    );
  }

  listCosts() {
    const { facts } = this;
    const rows = Object.entries(facts.seconds).map(([phase, seconds]) => [PHASES[phase] ?? phase, seconds]);
    $("phases").replaceChildren(
      ...rows.map(([name, seconds]) => phaseRow(name, seconds, facts.total)),
      phaseRow("the call, in all", facts.total, 0, "sum"),
      phaseRow("preparing the scene to be looked at", facts.saving, 0),
    );
    const { peak, before, device } = facts.memory;
    const lines = [
      ["memory of the program, at most during the call", peak === null ? "not told by this system" : size(peak)],
      ["of which before the call", size(before)],
      ["memory on the GPU, of all programs", device === null ? "no GPU is used" : size(device)],
      ["views", `${facts.views.length} of ${facts.width}x${facts.height}`],
      ["points", `${facts.points.toLocaleString("en")} of ${facts.pixels.toLocaleString("en")} pixels (${((100 * facts.points) / facts.pixels).toFixed(0)} %)`],
      ["median depth", facts.depth === null ? "no valid depth" : metres(facts.depth)],
      ["metric scale", facts.scale.toPrecision(4)],
      ["engine", this.about.title],
      ["runs on", this.about.where],
    ];
    $("facts").replaceChildren(
      ...lines.map(([name, value]) => {
        const row = make("tr", {});
        const head = make("th", { textContent: name });
        head.scope = "row";
        row.append(head, make("td", { textContent: value }));
        return row;
      }),
    );
    $("notes").replaceChildren(...facts.notes.map((note) => make("li", { textContent: note })));
  }
}

function phaseRow(name, seconds, total, className = "") {
  const row = make("tr", { className });
  const head = make("th", { textContent: name });
  head.scope = "row";
  const bar = make("td", {});
  if (total) {
    const meter = make("meter", { min: 0, max: total, value: seconds });
    meter.setAttribute("aria-label", `share of ${name}`);
    bar.append(meter);
  }
  row.append(head, make("td", { className: "number", textContent: seconds.toFixed(3) }), bar);
  return row;
}

function metres(length) {
  return length < 1 ? `${(100 * length).toPrecision(3)} cm` : `${length.toPrecision(4)} m`;
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}

/** Write a number of bytes. */
export function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil(bytes / 1e3)} kB`;
}
