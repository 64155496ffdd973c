import { BufferAttribute, BufferGeometry, GLSL3, Group, Points, RawShaderMaterial, Vector3 } from "three";
import { BYTES_PER_POINT, decodeBlock } from "./scene_data.js";

const VERTEX = `
precision highp float;
uniform mat4 modelMatrix, modelViewMatrix, projectionMatrix;
uniform vec3 eye;
uniform float angle, edge, size, pixels, least;
in vec4 position;
in vec4 color;
out vec3 shade;
void main() {
  vec4 place = modelViewMatrix * vec4(position.xyz, 1.0);
  gl_Position = position.w < least ? vec4(2.0, 2.0, 2.0, 1.0) : projectionMatrix * place;
  float usual = max(distance((modelMatrix * vec4(position.xyz, 1.0)).xyz, eye) * angle, edge);
  gl_PointSize = clamp(size * usual * pixels / max(-place.z, 1e-6), 1.0, 48.0);
  shade = color.rgb;
}`;
const FRAGMENT = `
precision mediump float;
in vec3 shade;
out vec4 result;
void main() { result = vec4(shade, 1.0); }`;

/** One layer of points: blocks that are shown or hidden by view and by level of detail. */
export class Cloud {
  constructor(layer) {
    this.layer = layer;
    this.group = new Group();
    this.blocks = [];
    this.finest = 0;
  }

  /** Take a block whose bytes begin at `start`. */
  add(block, bytes, start) {
    const { places, colors } = decodeBlock(bytes, start, block.count);
    if (block.level === 0) shuffle(places, colors);
    const view = this.layer.views[block.view];
    const geometry = new BufferGeometry();
    geometry.setAttribute("position", new BufferAttribute(places, 4, true));
    geometry.setAttribute("color", new BufferAttribute(colors, 4, true));
    const material = new RawShaderMaterial({
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      glslVersion: GLSL3,
      uniforms: {
        eye: { value: new Vector3().fromArray(view.pose, 12) },
        angle: { value: view.pixel },
        edge: { value: 0 }, size: { value: 1 }, pixels: { value: 1 }, least: { value: 0 },
      },
    });
    const points = new Points(geometry, material);
    points.frustumCulled = false;
    points.position.fromArray(block.low);
    points.scale.fromArray(block.size);
    points.updateMatrixWorld();
    points.matrixAutoUpdate = false;
    this.group.add(points);
    this.blocks.push({ ...block, places, points, counts: cumulative(places) });
    this.finest = Math.max(this.finest, block.level);
  }

  /**
   * Draw points of `size` times their distance from each other, on a picture of `height` pixels: what a pixel of their
   * view covers, or the edge of the voxels that left one of several. Of the coarse level a `share` is drawn; null is
   * for all levels.
   */
  draw(size, least, height, fov, shownViews, share) {
    const pixels = height / (2 * Math.tan((fov * Math.PI) / 360));
    const coarse = share !== null || this.finest === 0;
    const edge = this.layer.edges[coarse ? 0 : this.finest];
    for (const block of this.blocks) {
      const { uniforms } = block.points.material;
      block.points.visible = shownViews[block.view] && !(coarse && block.level > 0);
      block.points.geometry.setDrawRange(0, Math.ceil(block.count * (share ?? 1)));
      uniforms.edge.value = edge;
      uniforms.size.value = size;
      uniforms.pixels.value = pixels;
      uniforms.least.value = least / 255 - 1e-4;
    }
  }

  /** Count the points that are drawn when nothing moves. */
  count(least, shownViews) {
    let sum = 0;
    for (const block of this.blocks) if (shownViews[block.view]) sum += block.counts[least];
    return sum;
  }

  /** How many points there are here. */
  get loaded() {
    return this.blocks.reduce((sum, block) => sum + block.count, 0);
  }

  /** Find the nearest drawn point within `reach` pixels of (x, y), or null. */
  pick(camera, width, height, x, y, least, shownViews, reach) {
    const matrix = camera.projectionMatrix.clone().multiply(camera.matrixWorldInverse);
    let best = null;
    for (const block of this.blocks) {
      if (!shownViews[block.view]) continue;
      const m = matrix.clone().multiply(block.points.matrixWorld).elements.map((value, i) => (i < 12 ? value / 65535 : value));
      const { places } = block;
      for (let i = 0; i < places.length; i += 4) {
        if (places[i + 3] < least * 257) continue;
        const [a, b, c] = [places[i], places[i + 1], places[i + 2]];
        const w = m[3] * a + m[7] * b + m[11] * c + m[15];
        if (w <= camera.near) continue;
        const dx = ((m[0] * a + m[4] * b + m[8] * c + m[12]) / w + 1) * 0.5 * width - x;
        if (dx > reach || dx < -reach) continue;
        const dy = (1 - (m[1] * a + m[5] * b + m[9] * c + m[13]) / w) * 0.5 * height - y;
        const off = Math.hypot(dx, dy);
        // What is nearer to the eye hides what lies behind it; a little further is as good if it is nearer to the pointer.
        const cost = w * (1 + 0.004 * off);
        if (off <= reach && (best === null || cost < best.cost)) best = { cost, block, index: i };
      }
    }
    if (best === null) return null;
    const { places, points } = best.block;
    return new Vector3(places[best.index], places[best.index + 1], places[best.index + 2])
      .divideScalar(65535)
      .applyMatrix4(points.matrixWorld);
  }
}

/** How many points have at least each rank. */
function cumulative(places) {
  const counts = new Uint32Array(257);
  for (let i = 3; i < places.length; i += 4) counts[Math.round(places[i] / 257)]++;
  for (let rank = 255; rank >= 0; rank--) counts[rank] += counts[rank + 1];
  return counts;
}

/** Put points into an order of which any beginning shows the whole; the same order each time. */
function shuffle(places, colors) {
  const [places64, colors32] = [new BigUint64Array(places.buffer), new Uint32Array(colors.buffer)];
  let state = 1;
  for (let i = colors32.length - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [places64[i], places64[j]] = [places64[j], places64[i]];
    [colors32[i], colors32[j]] = [colors32[j], colors32[i]];
  }
}
