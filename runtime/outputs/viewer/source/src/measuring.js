import {
  BufferGeometry, Float32BufferAttribute, Group, Line, LineBasicMaterial, Mesh, MeshBasicMaterial, SphereGeometry,
} from "three";

const COLOR = 0xffb65c;

/** Two points and the line between them. */
export class Measuring {
  constructor() {
    this.group = new Group();
    this.points = [];
    const material = new MeshBasicMaterial({ color: COLOR, depthTest: false });
    this.balls = [0, 1].map(() => new Mesh(new SphereGeometry(1, 16, 12), material));
    this.line = new Line(new BufferGeometry(), new LineBasicMaterial({ color: COLOR, depthTest: false }));
    this.line.frustumCulled = false;
    this.group.add(this.line, ...this.balls);
    this.group.renderOrder = 1;
    for (const part of this.group.children) part.renderOrder = 1;
    this.clear();
  }

  clear() {
    this.points = [];
    this.place();
  }

  /** Take a point; the third one begins again. */
  add(point) {
    if (this.points.length === 2) this.points = [];
    this.points.push(point);
    this.place();
  }

  place() {
    this.balls.forEach((ball, index) => {
      ball.visible = index < this.points.length;
      if (ball.visible) ball.position.copy(this.points[index]);
    });
    this.line.visible = this.points.length === 2;
    if (this.line.visible) {
      const ends = this.points.flatMap((point) => point.toArray());
      this.line.geometry.setAttribute("position", new Float32BufferAttribute(ends, 3));
    }
  }

  /** Keep the balls as large as they look from everywhere. */
  draw(camera) {
    for (const ball of this.balls) ball.scale.setScalar(0.006 * ball.position.distanceTo(camera.position));
  }

  get distance() {
    return this.points.length === 2 ? this.points[0].distanceTo(this.points[1]) : null;
  }

  get middle() {
    return this.points[0].clone().add(this.points[1]).divideScalar(2);
  }
}

/** Write a length in metres so that four digits show. */
export function inMetres(length) {
  if (length >= 1000) return `${Math.round(length).toLocaleString("en")} m`;
  if (length >= 1) return `${length.toPrecision(4)} m`;
  return length >= 0.01 ? `${(100 * length).toPrecision(3)} cm` : `${(1000 * length).toPrecision(3)} mm`;
}
