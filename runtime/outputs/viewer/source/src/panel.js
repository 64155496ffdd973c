const $ = (id) => document.getElementById(id);

/** The controls beside the picture; `changed` is called after each change, `actions` are what buttons do. */
export class Panel {
  constructor(scene, actions, changed) {
    this.scene = scene;
    this.layer = 0;
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
    this.listLayers(changed);
    this.listViews(actions, changed);
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
    this.scene.layers[0].views.forEach((view, index) => {
      const box = make("input", { type: "checkbox", checked: true });
      box.addEventListener("input", () => {
        this.shownViews[index] = box.checked;
        changed();
      });
      const label = make("label", { title: view.name });
      label.append(box, make("img", { src: view.image, alt: "" }), make("span", { textContent: view.name }));
      const from = make("button", { type: "button", textContent: "From here" });
      from.setAttribute("aria-label", `Look from ${view.name}`);
      from.addEventListener("click", () => actions.lookFrom(index));
      const item = make("li", {});
      item.append(label, from);
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

  /** Write the values of the sliders, and how much of what is drawn. */
  write(drawn) {
    const layer = this.scene.layers[this.layer];
    const percent = Number($("confidence").value);
    const limit = layer.confidence[this.least];
    $("confidence-value").textContent = percent === 0 ? "none" : `${percent} % (< ${limit.toPrecision(3)})`;
    $("confidence").setAttribute("aria-valuetext", percent === 0 ? "none" : `${percent} percent`);
    $("size-value").textContent = this.size.toFixed(1);
    $("frustum-value").textContent = this.frustum.toFixed(1);
    const number = (value) => value.toLocaleString("en");
    const kept = layer.stored < layer.total ? `; the file holds ${number(layer.stored)}${layer.thinned ? `, ${layer.thinned}` : ""}` : "";
    $("drawn").textContent = `Drawn: ${number(drawn)} of ${number(layer.total)} points${kept}.`;
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
