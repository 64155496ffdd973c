import {
  BufferGeometry, Color, DoubleSide, Float32BufferAttribute, Group, LineBasicMaterial, LineSegments, Matrix4, Mesh,
  MeshBasicMaterial, SRGBColorSpace, TextureLoader, Vector3,
} from "three";

/** The cameras of one layer as frustums with their images. */
export class Cameras {
  constructor(layer, redraw) {
    this.group = new Group();
    this.views = layer.views.map((view, index) => {
      const group = new Group();
      const [left, top, right, bottom] = view.frustum;
      const corners = [[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]];
      const share = layer.views.length > 1 ? index / (layer.views.length - 1) : 0;
      const color = new Color().setRGB(0.95 - 0.7 * share, 0.42 + 0.2 * share, 0.3 + 0.7 * share, SRGBColorSpace);
      const lines = [];
      corners.forEach((corner, i) => lines.push(0, 0, 0, ...corner, ...corner, ...corners[(i + 1) % 4]));
      // A roof over the upper edge says which way is up.
      const tip = [(left + right) / 2, top - 0.22 * Math.abs(bottom - top), 1];
      lines.push(...corners[0], ...tip, ...tip, ...corners[1]);
      const geometry = new BufferGeometry().setAttribute("position", new Float32BufferAttribute(lines, 3));
      group.add(new LineSegments(geometry, new LineBasicMaterial({ color })));
      const plane = new BufferGeometry();
      plane.setAttribute("position", new Float32BufferAttribute(corners.flat(), 3));
      plane.setAttribute("uv", new Float32BufferAttribute([0, 1, 1, 1, 1, 0, 0, 0], 2));
      plane.setIndex([0, 1, 2, 0, 2, 3]);
      const material = new MeshBasicMaterial({ side: DoubleSide });
      const image = new Mesh(plane, material);
      image.visible = false;
      if (view.image) new TextureLoader().load(view.image, (texture) => {
        texture.colorSpace = SRGBColorSpace;
        material.map = texture;
        material.needsUpdate = true;
        redraw();
      });
      group.add(image);
      group.matrixAutoUpdate = false;
      this.group.add(group);
      return { group, image, pose: new Matrix4().fromArray(view.pose) };
    });
    this.size = layer.frustum;
  }

  /** Show the frustums of the views that are shown, `size` times as large as usual. */
  draw(visible, images, size, shownViews, eye) {
    this.group.visible = visible;
    this.views.forEach(({ group, image, pose }, index) => {
      // From inside a frustum, its image would hide the scene.
      const inside = eye.distanceTo(new Vector3().setFromMatrixPosition(pose)) < size * this.size;
      group.visible = shownViews[index] && !inside;
      image.visible = images && image.material.map !== null;
      group.matrix.copy(pose).multiply(new Matrix4().makeScale(size * this.size, size * this.size, size * this.size));
      group.matrixWorldNeedsUpdate = true;
    });
  }
}
