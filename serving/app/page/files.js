// The files that are to be used: added, shown, uploaded one after the other, and uploaded again after a call.

import { size } from "./result.js";

const $ = (id) => document.getElementById(id);

export class Files {
  /** `tell` has `changed()`, `problem(text)` and `sentence(error)`. */
  constructor(about, ask, tell) {
    this.about = about;
    this.ask = ask;
    this.tell = tell;
    this.entries = [];
    this.uploading = false;
    this.sending = Promise.resolve();
    const { limits, suffixes } = about;
    $("choose").accept = suffixes.join(",");
    $("bounds").textContent = `At most ${limits.files} files of ${size(limits.size)} in all, and ${(limits.pixels / 1e6).toLocaleString("en")} million pixels each.`;
    $("choose").addEventListener("change", () => {
      this.add([...$("choose").files]);
      $("choose").value = "";
    });
    this.listenToDrops();
  }

  get used() {
    return this.entries.filter((entry) => entry.box.checked && !entry.problem);
  }

  /** Those of the uploads that are there. */
  get numbers() {
    return this.used.filter((entry) => entry.number !== null).map((entry) => entry.number);
  }

  listenToDrops() {
    const drop = $("drop");
    for (const name of ["dragover", "dragleave", "drop"]) {
      document.addEventListener(name, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        drop.classList.toggle("over", name === "dragover");
        if (name === "drop") this.add([...event.dataTransfer.files]);
      });
    }
  }

  add(chosen) {
    const { limits, suffixes } = this.about;
    const problems = [];
    chosen.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
    for (const file of chosen) {
      const total = this.entries.reduce((sum, entry) => sum + entry.file.size, 0);
      const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
      if (!suffixes.includes(suffix)) problems.push(`${file.name}: is neither an image nor a video that can be read here.`);
      else if (this.entries.length >= limits.files) problems.push(`${file.name}: at most ${limits.files} files are taken.`);
      else if (total + file.size > limits.size) problems.push(`${file.name}: has ${size(file.size)}, and at most ${size(limits.size)} are taken in all.`);
      else this.entries.push(this.entry(file));
    }
    this.tell.problem(problems.length > 3 ? `${problems.slice(0, 3).join(" ")} And ${problems.length - 3} more.` : problems.join(" "));
    this.send();
  }

  entry(file) {
    const entry = { file, number: null, facts: null, problem: "" };
    entry.box = make("input", { type: "checkbox", checked: true });
    entry.note = make("small", { textContent: size(file.size) });
    const label = make("label", { title: file.name });
    label.append(entry.box);
    if (/\.(jpe?g|png|webp|gif|bmp|avif)$/i.test(file.name)) {
      entry.picture = URL.createObjectURL(file);
      label.append(make("img", { src: entry.picture, alt: "", loading: "lazy" }));
    }
    const words = make("span", { textContent: file.name });
    words.append(entry.note);
    label.append(words);
    const remove = make("button", { type: "button", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => this.remove(entry));
    entry.row = make("li", {});
    entry.row.append(label, remove);
    $("files").append(entry.row);
    return entry;
  }

  /** Upload what is not there yet, one file after the other; resolves when all of it was tried. */
  send() {
    this.sending = this.sending.then(async () => {
      this.uploading = true;
      this.tell.changed();
      for (const entry of [...this.entries]) {
        if (entry.number === null && !entry.problem && this.entries.includes(entry)) await this.sendOne(entry);
      }
      this.uploading = false;
      this.tell.changed();
    });
    return this.sending;
  }

  async sendOne(entry) {
    const { file } = entry;
    entry.note.textContent = `${size(file.size)}, uploading`;
    try {
      const facts = await this.ask(`files?name=${encodeURIComponent(file.name)}`, { method: "PUT", body: file });
      if (!this.entries.includes(entry)) return void this.forget(facts.number);
      entry.facts = facts;
      entry.number = facts.number;
      const what = facts.kind === "video" ? `, ${facts.frames} frames, ${facts.seconds.toFixed(1)} s` : "";
      entry.note.textContent = `${facts.width}x${facts.height}, ${size(facts.size)}${what}`;
    } catch (error) {
      entry.problem = this.tell.sentence(error);
      entry.note.textContent = entry.problem;
      entry.note.className = "problem";
      entry.box.checked = false;
      entry.box.disabled = true;
    }
  }

  /** Upload again what was used by a call; resolves to the numbers of what is to be used now. */
  async upload() {
    await this.send();
    return this.numbers;
  }

  /** What a call used was deleted. */
  forgetUsed() {
    for (const entry of this.used) entry.number = null;
  }

  forget(number) {
    this.ask(`files/${number}`, { method: "DELETE" }).catch((error) => this.tell.problem(this.tell.sentence(error)));
  }

  remove(entry) {
    this.entries = this.entries.filter((other) => other !== entry);
    entry.row.remove();
    if (entry.picture) URL.revokeObjectURL(entry.picture);
    if (entry.number !== null) this.forget(entry.number);
    this.tell.problem("");
    this.tell.changed();
    $("choose").focus();
  }

  clear() {
    for (const entry of [...this.entries]) this.remove(entry);
  }

  useAll(used) {
    for (const entry of this.entries) entry.box.checked = used && !entry.problem;
    this.tell.changed();
  }
}

function make(tag, properties) {
  return Object.assign(document.createElement(tag), properties);
}
