// Reads the scene out of the page: see runtime/outputs/viewer/quantization.py for what is in it.

/** Parse the description of the scene. */
export function readDescription() {
  return JSON.parse(document.getElementById("scene").textContent);
}

/** Unpack the bytes of all blocks. */
export async function readBytes() {
  const element = document.getElementById("data");
  const text = atob(element.textContent.trim());
  element.remove();
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Load a level of the scene from the server that the page came from: see runtime/outputs/viewer/levels.py.
 * `take` is called with each block and its bytes, and may be waited for.
 */
export async function loadLevel(source, level, take) {
  const interrupted = (of) => of.catch(() => {
    throw new Error("the server does not answer; is it still running?");
  });
  const response = await interrupted(fetch(`${source}/${level}`));
  if (!response.ok) throw new Error("the server no longer has this scene; load the page again");
  const reader = response.body.getReader();
  let parts = [];
  let held = 0;
  const read = async (count) => {
    while (held < count) {
      const { done, value } = await interrupted(reader.read());
      if (done) return null;
      parts.push(value);
      held += value.length;
    }
    const all = new Uint8Array(held);
    parts.reduce((at, part) => (all.set(part, at), at + part.length), 0);
    parts = held > count ? [all.subarray(count)] : [];
    held -= count;
    return all.subarray(0, count);
  };
  const ended = () => {
    throw new Error("the server ended before the scene was whole; try it again");
  };
  for (;;) {
    const head = await read(4);
    if (head === null) return held ? ended() : undefined;
    const text = (await read(new DataView(head.buffer, head.byteOffset).getUint32(0, true))) ?? ended();
    const block = JSON.parse(new TextDecoder().decode(text));
    const bytes = (await read(BYTES_PER_POINT * block.count)) ?? ended();
    await take(block, bytes);
  }
}

/**
 * Decode the points of one block: differences from point to point, each byte of each coordinate in a plane of its own.
 *
 * Writes from point `to` on into `places` (x, y, z, and `number`) and `colors` (red, green, blue, and the rank of the
 * confidence), and returns how many points have at least each rank.
 */
export function decodeBlock(bytes, start, count, number, places, colors, to) {
  const plane = (index) => start + index * count;
  for (let axis = 0; axis < 3; axis++) {
    const low = plane(2 * axis);
    const high = plane(2 * axis + 1);
    let value = 0;
    for (let i = 0; i < count; i++) {
      const folded = bytes[low + i] | (bytes[high + i] << 8);
      value = (value + ((folded >>> 1) ^ -(folded & 1))) & 0xffff;
      places[4 * (to + i) + axis] = value;
    }
  }
  const counts = new Uint32Array(257);
  let red = 0, green = 0, blue = 0, rank = 0;
  const [reds, greens, blues, ranks] = [plane(6), plane(7), plane(8), plane(9)];
  for (let i = 0; i < count; i++) {
    red = (red + bytes[reds + i]) & 255;
    green = (green + bytes[greens + i]) & 255;
    blue = (blue + bytes[blues + i]) & 255;
    rank = (rank + bytes[ranks + i]) & 255;
    const at = 4 * (to + i);
    colors[at] = (red + green) & 255;
    colors[at + 1] = green;
    colors[at + 2] = (blue + green) & 255;
    colors[at + 3] = rank;
    places[at + 3] = number;
    counts[rank]++;
  }
  for (let least = 255; least >= 0; least--) counts[least] += counts[least + 1];
  return counts;
}

export const BYTES_PER_POINT = 10;
