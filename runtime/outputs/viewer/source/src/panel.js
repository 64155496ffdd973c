const $ = (id) => document.getElementById(id);

/** The controls beside the picture; `changed` is called after each change, `actions` are what buttons do. */
export class Panel {
  constructor(scene, actions, changed) {
    this.scene = scene;
    this.layer = 0;
    this.changed = changed;
    this.shownViews = Array(Math.max(...scene.layers.map((layer) => layer.views.length))).fill(true);
    $("about").textContent = scene.about;
    for (const id of ["confidence", "size", "frustum", "cameras", "images"]) $(id).addEventListener("input", changed);
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("again").addEventListener("click", actions.reset);
    $("measure").addEventListener("click", actions.toggleMeasuring);
    $("background").addEventListener("click", () => {
      const light = $("stage").classList.toggle("light");
      $("background").setAttribute("aria-pressed", String(light));
      changed();
    });
    for (const [id, shown] of [["all", true], ["none", false]]) {
      $(id).addEventListener("click", () => {
        this.shownViews.fill(shown);
        for (const box of document.querySelectorAll("#views input")) box.checked = shown;
        changed();
      });
    }
    $("rest").addEventListener("click", () => this.load(2, actions.load));
    this.listLayers(changed);
    this.listViews(actions, changed);
  }

  /** Load the levels up to `last` by `load`, and say why that failed; the button is there to try it again. */
  async load(last, load) {
    this.wanted = this.pointsUpTo(last);
    $("rest").disabled = true;
    $("load-problem").textContent = "";
    try {
      await load(last);
    } catch (error) {
      $("load-problem").textContent = `Not all points are here: ${error.message}`;
    }
    $("rest").disabled = false;
    this.changed();
  }

  /** How many points the levels up to `last` have, of a scene that a server has. */
  pointsUpTo(last) {
    return this.scene.layers[0].counts.slice(0, last + 1).reduce((sum, count) => sum + count, 0);
  }

  listLayers(changed) {
    const { layers } = this.scene;
    $("layers").hidden = layers.length < 2;
    layers.forEach((layer, index) => {
      const label = make("label", { className: "check" });
      const radio = make("input", { type: "radio", name: "layer", value: String(index), checked: index === 0 });
      radio.addEventListener("input", () => {
        this.layer = index;
        changed();
      });
      label.append(radio, layer.name);
      $("layers").append(label);
    });
  }

  listViews(actions, changed) {
    const list = document.querySelector("#views ul");
    const hasCameras = this.scene.layers.some((layer) => layer.views.some((view) => view.image));
    document.getElementById("camera-controls").hidden = !hasCameras;
    this.scene.layers[0].views.forEach((view, index) => {
      const box = make("input", { type: "checkbox", checked: true });
      box.addEventListener("input", () => {
        this.shownViews[index] = box.checked;
        changed();
      });
      const label = make("label", { title: view.name });
      if (view.image) label.append(box, make("img", { loading: "lazy", src: view.image, alt: "" }), make("span", { textContent: view.name }));
      else label.append(box, make("span", { textContent: view.name }));
      const from = make("button", { type: "button", textContent: "From here" });
      from.setAttribute("aria-label", `Look from ${view.name}`);
      from.addEventListener("click", () => actions.lookFrom(index));
      const item = make("li", {});
      item.append(label);
      if (view.image) item.append(from);
      list.append(item);
    });
  }

  nextLayer() {
    const radios = document.querySelectorAll("#layers input");
    radios[(this.layer + 1) % radios.length].click();
  }

  toggleCameras() {
    $("cameras").click();
  }

  /** The lowest rank of confidence that is drawn. */
  get least() {
    return Math.round((Number($("confidence").value) / 100) * 255);
  }

  get size() {
    return Number($("size").value);
  }

  get frustum() {
    return Number($("frustum").value);
  }

  get cameras() {
    return $("cameras").checked;
  }

  get images() {
    return $("images").checked;
  }

  /** Write the values of the sliders, and how much is drawn of how much. */
  write(drawn, loaded) {
    const layer = this.scene.layers[this.layer];
    const percent = Number($("confidence").value);
    const limit = layer.confidence[this.least];
    const equal = layer.confidence[0] === layer.confidence[255];
    $("confidence").disabled = equal;
    $("confidence-value").textContent = equal ? "all equal" : percent === 0 ? "none" : `${percent} % (< ${limit.toPrecision(3)})`;
    $("confidence").setAttribute("aria-valuetext", percent === 0 ? "none" : `${percent} percent`);
    $("size-value").textContent = this.size.toFixed(1);
    $("frustum-value").textContent = this.frustum.toFixed(1);
    const number = (value) => value.toLocaleString("en");
    const served = this.scene.source !== null;
    const thinned = layer.thinned ? `, ${layer.thinned}` : "";
    const kept = loaded === layer.total ? "" : served ? thinned : `; the file holds ${number(layer.stored)}${thinned}`;
    const text = `Drawn: ${number(drawn)} of ${number(layer.total)} points${kept}.`;
    if ($("drawn").textContent !== text) $("drawn").textContent = text;
    if (!served) return;
    $("rest").hidden = loaded === this.pointsUpTo(2);
    $("rest").textContent = $("rest").disabled
      ? `Loading: ${Math.floor((100 * loaded) / this.wanted)} %`
      : `Load all ${number(layer.total)} points`;
  }

  set measuring(on) {
    $("measure").setAttribute("aria-pressed", String(on));
    $("stage").classList.toggle("measuring", on);
    $("cross").hidden = !on;
  }

  set measured(text) {
    $("measured").textContent = text;
  }
}

function make(name, properties) {
  return Object.assign(document.createElement(name), properties);
}
