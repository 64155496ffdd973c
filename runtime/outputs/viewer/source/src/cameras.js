import {
  BufferGeometry, CanvasTexture, Color, DoubleSide, Float32BufferAttribute, Group, LineBasicMaterial, LineSegments,
  Matrix4, Mesh, MeshBasicMaterial, SRGBColorSpace, Vector3,
} from "three";

const SHEET = 2 ** 20; // pixels of the texture with all images, about

/** The cameras of one layer as frustums with their images: one call draws all lines, one all images. */
export class Cameras {
  constructor(layer, redraw) {
    this.size = layer.frustum;
    this.views = layer.views.map((view) => ({ ...view, matrix: new Matrix4().fromArray(view.pose), isLoaded: false }));
    this.group = new Group();
    this.lines = new LineSegments(new BufferGeometry(), new LineBasicMaterial({ vertexColors: true }));
    this.images = new Mesh(new BufferGeometry(), new MeshBasicMaterial({ side: DoubleSide }));
    for (const part of [this.lines, this.images]) part.frustumCulled = false;
    this.group.add(this.lines, this.images);
    this.drawn = ""; // what the geometries hold
    this.columns = Math.ceil(Math.sqrt(this.views.length));
    this.redraw = redraw;
  }

  /** Read the images. */
  async load() {
    await Promise.all(this.views.map((view, index) => view.image && this.loadImage(view, index)));
  }

  async loadImage(view, index) {
    const image = new Image();
    image.src = view.image;
    await image.decode();
    if (!this.sheet) this.makeSheet(image);
    const { width, height } = this.cell;
    const [column, row] = [index % this.columns, Math.floor(index / this.columns)];
    this.pen.drawImage(image, column * width, row * height, width, height);
    this.images.material.map.needsUpdate = true;
    view.isLoaded = true;
    this.redraw();
  }

  makeSheet(image) {
    const rows = Math.ceil(this.views.length / this.columns);
    const scale = Math.min(1, Math.sqrt(SHEET / (this.columns * image.width * rows * image.height)));
    const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.floor(side * scale)));
    this.cell = { width, height };
    this.sheet = Object.assign(document.createElement("canvas"), { width: this.columns * width, height: rows * height });
    this.pen = this.sheet.getContext("2d", { willReadFrequently: true });
    this.images.material.map = new CanvasTexture(this.sheet);
    this.images.material.map.colorSpace = SRGBColorSpace;
    this.images.material.needsUpdate = true;
  }

  /** Show the frustums of the views that are shown, `size` times as large as usual. */
  draw(visible, images, size, shownViews, eye) {
    this.group.visible = visible;
    if (!visible) return;
    const depth = size * this.size;
    // From inside a frustum, its image would hide the scene.
    const shown = this.views.map(
      ({ matrix }, index) => shownViews[index] && eye.distanceTo(new Vector3().setFromMatrixPosition(matrix)) >= depth,
    );
    const withImage = this.views.map(({ isLoaded }, index) => images && isLoaded && shown[index]);
    const drawn = [depth, shown.map(Number).join(""), withImage.map(Number).join("")].join();
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.drawLines(depth, shown);
    this.drawImages(depth, withImage);
  }

  drawLines(depth, shown) {
    const [places, colors] = [[], []];
    this.views.forEach(({ frustum, matrix }, index) => {
      if (!shown[index]) return;
      const [left, top, right, bottom] = frustum;
      // A roof over the upper edge says which way is up.
      const tip = [(left + right) / 2, top - 0.22 * Math.abs(bottom - top), 1];
      const lines = [tip, cornersOf(frustum)[0], tip, cornersOf(frustum)[1]];
      cornersOf(frustum).forEach((corner, i, all) => lines.push([0, 0, 0], corner, corner, all[(i + 1) % 4]));
      const share = shown.length > 1 ? index / (shown.length - 1) : 0;
      const color = new Color().setRGB(0.95 - 0.7 * share, 0.42 + 0.2 * share, 0.3 + 0.7 * share, SRGBColorSpace);
      for (const end of lines) {
        places.push(...placed(end, depth, matrix));
        colors.push(color.r, color.g, color.b);
      }
    });
    replace(this.lines, { position: [places, 3], color: [colors, 3] });
  }

  drawImages(depth, shown) {
    const [places, on, indices] = [[], [], []];
    this.views.forEach(({ frustum, matrix }, index) => {
      if (!shown[index]) return;
      const first = places.length / 3;
      for (const corner of cornersOf(frustum)) places.push(...placed(corner, depth, matrix));
      const { width, height } = this.cell;
      const [x, y] = [(index % this.columns) * width, Math.floor(index / this.columns) * height];
      // Half a pixel inside, so that no neighbour shows at the edges.
      const [left, right] = [(x + 0.5) / this.sheet.width, (x + width - 0.5) / this.sheet.width];
      const [top, bottom] = [1 - (y + 0.5) / this.sheet.height, 1 - (y + height - 0.5) / this.sheet.height];
      on.push(left, top, right, top, right, bottom, left, bottom);
      indices.push(...[0, 1, 2, 0, 2, 3].map((corner) => first + corner));
    });
    replace(this.images, { position: [places, 3], uv: [on, 2] });
    this.images.geometry.setIndex(indices);
    this.images.visible = indices.length > 0;
  }
}

function cornersOf([left, top, right, bottom]) {
  return [[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]];
}

function placed(point, depth, matrix) {
  return new Vector3().fromArray(point).multiplyScalar(depth).applyMatrix4(matrix).toArray();
}

function replace(object, attributes) {
  object.geometry.dispose();
  object.geometry = new BufferGeometry();
  for (const [name, [values, size]] of Object.entries(attributes)) {
    object.geometry.setAttribute(name, new Float32BufferAttribute(values, size));
  }
}
