import {
  BufferAttribute, BufferGeometry, DataTexture, FloatType, GLSL3, Group, Matrix4, Points, RGBAFormat, RawShaderMaterial,
  Vector3,
} from "three";
import { decodeBlock } from "./scene_data.js";

const STEPS = 65535;
const PART = 2 ** 20; // points that one call draws, at most (more if a block has more)
const TEXELS = 3; // of a block, in the table
const ROW = 64; // blocks in a row of the table
const VERTEX = `
precision highp float;
precision highp sampler2D;
uniform mat4 viewMatrix, projectionMatrix;
uniform sampler2D blocks;
uniform float edge, size, pixels, least;
in vec4 position; // steps, and the number of the block
in vec4 color; // and the rank of the confidence
out vec3 shade;
void main() {
  int number = int(position.w);
  ivec2 at = ivec2(${TEXELS} * (number % ${ROW}), number / ${ROW});
  vec4 low = texelFetch(blocks, at, 0); // and the angle of a pixel
  vec4 step = texelFetch(blocks, at + ivec2(1, 0), 0); // and whether the view is shown
  vec3 eye = texelFetch(blocks, at + ivec2(2, 0), 0).xyz;
  vec3 world = low.xyz + step.xyz * position.xyz;
  vec4 place = viewMatrix * vec4(world, 1.0);
  gl_Position = color.a < least || step.w == 0.0 ? vec4(2.0, 2.0, 2.0, 1.0) : projectionMatrix * place;
  float usual = max(distance(world, eye) * low.w, edge);
  gl_PointSize = clamp(size * usual * pixels / max(-place.z, 1e-6), 1.0, 48.0);
  shade = color.rgb;
}`;
const FRAGMENT = `
precision mediump float;
in vec3 shade;
out vec4 result;
void main() { result = vec4(shade, 1.0); }`;

/** Points of one level of detail that one call draws: blocks one after the other, and a table of what they have. */
class Part {
  constructor(level, room) {
    this.level = level;
    this.room = room;
    this.filled = 0;
    this.blocks = [];
    this.shown = [];
    this.isMixed = false;
    this.places = new Uint16Array(4 * room);
    this.colors = new Uint8Array(4 * room);
    this.shades = new Uint32Array(this.colors.buffer);
    this.table = new Float32Array(0);
    const material = new RawShaderMaterial({
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      glslVersion: GLSL3,
      uniforms: {
        blocks: { value: null }, edge: { value: 0 }, size: { value: 1 }, pixels: { value: 1 }, least: { value: 0 },
      },
    });
    this.uniforms = material.uniforms;
    this.geometry = new BufferGeometry();
    this.geometry.setAttribute("position", new BufferAttribute(this.places, 4));
    this.geometry.setAttribute("color", new BufferAttribute(this.colors, 4, true));
    this.points = new Points(this.geometry, [material]); // an array, so that groups are drawn
    this.points.frustumCulled = false;
    this.points.matrixAutoUpdate = false;
  }

  hasRoom(count) {
    return this.filled + count <= this.room && this.blocks.length <= STEPS;
  }

  /** Take a block whose bytes begin at `start`, of a camera at `eye` whose pixels have an `angle`. */
  add(block, bytes, start, eye, angle) {
    const number = this.blocks.length;
    const counts = decodeBlock(bytes, start, block.count, number, this.places, this.colors, this.filled);
    if (this.table.length < 4 * TEXELS * (number + 1)) this.enlargeTable();
    const steps = block.size.map((value) => value / STEPS);
    this.table.set([...block.low, angle, ...steps, 1, ...eye, 0], 4 * TEXELS * number);
    this.uniforms.blocks.value.needsUpdate = true;
    const toWorld = new Matrix4().makeScale(...steps).setPosition(...block.low);
    this.blocks.push({ ...block, counts, first: this.filled, toWorld, eye, angle });
    this.shown.push(true);
    for (const attribute of Object.values(this.geometry.attributes)) {
      attribute.addUpdateRange(4 * this.filled, 4 * block.count);
      attribute.needsUpdate = true;
    }
    this.filled += block.count;
    this.group();
  }

  enlargeTable() {
    const rows = Math.max(1, (2 * this.table.length) / (4 * TEXELS * ROW));
    const table = new Float32Array(4 * TEXELS * ROW * rows);
    table.set(this.table);
    this.table = table;
    this.uniforms.blocks.value?.dispose();
    this.uniforms.blocks.value = new DataTexture(table, TEXELS * ROW, rows, RGBAFormat, FloatType);
  }

  /** Show the blocks of some views. */
  show(shownViews) {
    if (this.blocks.every((block, number) => this.shown[number] === shownViews[block.view])) return;
    this.shown = this.blocks.map((block) => shownViews[block.view]);
    this.shown.forEach((shown, number) => (this.table[4 * (TEXELS * number + 1) + 3] = shown ? 1 : 0));
    this.uniforms.blocks.value.needsUpdate = true;
    this.group();
  }

  /** Draw runs of blocks that are shown; of mixed ones all, of which the table hides some. */
  group() {
    this.geometry.clearGroups();
    if (this.isMixed) return this.geometry.addGroup(0, this.filled, 0);
    let run = null;
    this.blocks.forEach((block, number) => {
      if (!this.shown[number]) run = null;
      else if (run) run.count += block.count;
      else this.geometry.groups.push((run = { start: block.first, count: block.count, materialIndex: 0 }));
    });
  }

  /** What is drawn of the first `count` points. */
  runs(count) {
    const runs = this.geometry.groups.map(({ start, count: own }) => ({ start, end: Math.min(start + own, count) }));
    return runs.filter(({ start, end }) => start < end);
  }

  /** Put the points into an order of which any beginning shows the whole; the same order each time. */
  mix() {
    const places = new Uint32Array(this.places.buffer);
    const colors = this.shades;
    let state = 1;
    for (let i = this.filled - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const j = Math.floor((state / 2 ** 32) * (i + 1));
      const [xy, zw, color] = [places[2 * i], places[2 * i + 1], colors[i]];
      places[2 * i] = places[2 * j];
      places[2 * i + 1] = places[2 * j + 1];
      colors[i] = colors[j];
      places[2 * j] = xy;
      places[2 * j + 1] = zw;
      colors[j] = color;
    }
    for (const attribute of Object.values(this.geometry.attributes)) {
      attribute.clearUpdateRanges();
      attribute.needsUpdate = true;
    }
    this.isMixed = true;
    this.group();
  }

  dispose() {
    this.geometry.dispose();
    this.points.material[0].dispose();
    this.uniforms.blocks.value?.dispose();
  }
}

/** One layer of points: levels of detail, whose blocks are shown or hidden by view. */
export class Cloud {
  /** `splatter` draws the points, or WebGL without one. */
  constructor(layer, splatter) {
    this.layer = layer;
    this.splatter = splatter;
    this.group = new Group();
    this.parts = [];
    this.finest = 0;
    this.counts = [...(layer.counts ?? [])];
    if (!layer.counts) for (const { level, count } of layer.blocks) this.counts[level] = (this.counts[level] ?? 0) + count;
  }

  /** Take a block whose bytes begin at `start`. */
  add(block, bytes, start) {
    let part = this.parts.findLast((each) => each.level === block.level);
    if (!part?.hasRoom(block.count)) {
      const left = this.counts[block.level] - this.loaded(block.level);
      part = new Part(block.level, Math.max(block.count, Math.min(left, PART)));
      this.parts.push(part);
      this.group.add(part.points);
    }
    const view = this.layer.views[block.view];
    part.add(block, bytes, start, view.pose.slice(12, 15), view.pixel);
    this.finest = Math.max(this.finest, block.level);
  }

  /** Say that a level has all its blocks. */
  finish(level) {
    for (const part of this.parts) if (part.level === level && level === 0) part.mix();
  }

  /** Forget a level that did not come whole. */
  drop(level) {
    for (const part of this.parts.filter((each) => each.level === level)) {
      this.group.remove(part.points);
      part.dispose();
    }
    this.parts = this.parts.filter((each) => each.level !== level);
    this.finest = Math.max(0, ...this.parts.map((part) => part.level));
  }

  /**
   * Draw points of `size` times their distance from each other, on a picture of `width` and `height` pixels: what a
   * pixel of their view covers, or the edge of the voxels that left one of several. Of the coarse level a `share` is
   * drawn; null is for all levels.
   */
  draw(size, least, width, height, camera, shownViews, share) {
    const pixels = height / (2 * Math.tan((camera.fov * Math.PI) / 360));
    const coarse = share !== null || this.finest === 0;
    const edge = this.layer.edges[coarse ? 0 : this.finest];
    const drawn = this.parts.filter((part) => part.level === 0 || !coarse);
    for (const part of this.parts) part.points.visible = !this.splatter && drawn.includes(part);
    for (const part of drawn) part.show(shownViews);
    const counts = drawn.map((part) => Math.ceil(part.filled * (part.isMixed ? (share ?? 1) : 1)));
    this.drawn = counts.reduce((sum, count) => sum + count, 0);
    if (this.splatter) {
      const parts = drawn.map((part, index) => ({ part, count: counts[index] }));
      this.splatter.draw(parts, camera, width, height, { size, pixels, edge, least });
      return;
    }
    drawn.forEach((part, index) => {
      part.geometry.setDrawRange(0, counts[index]);
      part.uniforms.edge.value = edge;
      part.uniforms.size.value = size;
      part.uniforms.pixels.value = pixels;
      part.uniforms.least.value = least / 255 - 1e-4;
    });
  }

  /** Count the points that are drawn when nothing moves. */
  count(least, shownViews) {
    let sum = 0;
    for (const part of this.parts) for (const { view, counts } of part.blocks) if (shownViews[view]) sum += counts[least];
    return sum;
  }

  /** How many points there are here, of one level or in all. */
  loaded(level = null) {
    return this.parts.reduce((sum, part) => sum + (level === null || part.level === level ? part.filled : 0), 0);
  }

  /** Find the nearest drawn point within `reach` pixels of (x, y), or null. */
  pick(camera, width, height, x, y, least, shownViews, reach) {
    const matrix = camera.projectionMatrix.clone().multiply(camera.matrixWorldInverse);
    let best = null;
    for (const part of this.parts) {
      const elements = part.blocks.map(
        ({ toWorld, view }) => shownViews[view] && matrix.clone().multiply(toWorld).elements,
      );
      const { places, colors, filled } = part;
      for (let i = 0; i < 4 * filled; i += 4) {
        const m = elements[places[i + 3]];
        if (!m || colors[i + 3] < least) continue;
        const [a, b, c] = [places[i], places[i + 1], places[i + 2]];
        const w = m[3] * a + m[7] * b + m[11] * c + m[15];
        if (w <= camera.near) continue;
        const dx = ((m[0] * a + m[4] * b + m[8] * c + m[12]) / w + 1) * 0.5 * width - x;
        if (dx > reach || dx < -reach) continue;
        const dy = (1 - (m[1] * a + m[5] * b + m[9] * c + m[13]) / w) * 0.5 * height - y;
        const off = Math.hypot(dx, dy);
        // What is nearer to the eye hides what lies behind it; a little further is as good if it is nearer to the pointer.
        const cost = w * (1 + 0.004 * off);
        if (off > reach || (best !== null && cost >= best.cost)) continue;
        best = { cost, steps: [a, b, c], transform: part.blocks[places[i + 3]].toWorld };
      }
    }
    return best && new Vector3().fromArray(best.steps).applyMatrix4(best.transform);
  }
}
