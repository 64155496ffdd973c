import { Color, PerspectiveCamera, Scene, WebGLRenderer } from "three";
import { Cameras } from "./cameras.js";
import { listenToKeys } from "./keyboard.js";
import { Measuring, inMetres } from "./measuring.js";
import { Navigation } from "./navigation.js";
import { Panel } from "./panel.js";
import { Cloud } from "./points.js";
import { Splatter } from "./splatting.js";
import { BYTES_PER_POINT, loadLevel, readBytes, readDescription } from "./scene_data.js";

const SLOW = 50; // ms a frame: above it, only the coarse level is drawn while the scene moves
const STILL = 200; // ms after which it no longer moves; longer where drawing everything takes longer
const PATIENCE = 1500; // ms, at most so long
const SMOOTH = 32; // ms a frame that a moving scene should take at most
const EASY = 24; // ms, below which it may draw more
const PAUSE = 300; // ms between pictures of a scene that is being loaded, and four times as long as one takes
const LEAST = 0.25; // of the coarse level, which is drawn in any case
const BUSY = 30; // ms of taking points, after which the page may do something else
const REACH = 14; // pixels around the pointer in which a point is found

const canvas = document.getElementById("canvas");
const message = document.getElementById("message");
const label = document.getElementById("distance");

start().catch((error) => {
  message.textContent = `The scene cannot be shown: ${error.message}`;
  document.documentElement.dataset.state = "failed";
});

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old (no DecompressionStream)");
  const description = readDescription();
  const software = isSoftware();
  let renderer;
  try {
    renderer = new WebGLRenderer({ canvas, antialias: !software });
  } catch {
    throw new Error("this browser has no WebGL 2; switch on hardware acceleration, or try another one");
  }
  const scene = new Scene();
  const { radius } = description.start;
  const camera = new PerspectiveCamera(50, 1, radius * 1e-3, radius * 1e3);
  const measuring = new Measuring();
  let measures = false;
  let movedAt = -Infinity;
  let frame = 0;
  let slow = false;
  let blurs = false; // half of the resolution while it moves
  let share = 1; // of the coarse level, while it moves
  let still = STILL;
  let isReady = false; // there are points to draw

  const redraw = () => {
    if (isReady) frame ||= requestAnimationFrame(draw);
  };
  const pixel = new Uint8Array(4);
  let drawnAt = 0;
  let took = 0;
  let waits = 0;
  const redrawSoon = () => {
    waits ||= setTimeout(() => {
      waits = 0;
      redraw();
    }, Math.max(0, drawnAt + Math.max(PAUSE, 4 * took) - performance.now()));
  };
  const moved = () => {
    movedAt = performance.now();
    redraw();
  };
  const splatter = software ? new Splatter() : null;
  if (splatter) scene.add(splatter.mesh);
  const clouds = description.layers.map((layer) => ({
    cloud: new Cloud(layer, splatter),
    cameras: new Cameras(layer, redrawSoon),
  }));
  for (const { cloud, cameras } of clouds) scene.add(cloud.group, cameras.group);
  scene.add(measuring.group);
  const navigation = new Navigation(camera, canvas, description.start, moved);

  const measure = (on) => {
    measures = on;
    panel.measuring = on;
    measuring.clear();
    panel.measured = on ? "Choose the first point." : "";
    redraw();
  };
  const pickAt = (x, y) => {
    const { cloud } = clouds[panel.layer];
    const { clientWidth, clientHeight } = canvas;
    camera.updateMatrixWorld(); // it may have moved since it was drawn
    return cloud.pick(camera, clientWidth, clientHeight, x, y, panel.least, panel.shownViews, REACH);
  };
  const takePoint = (x, y) => {
    const point = pickAt(x, y);
    if (point === null) {
      panel.measured = "There is no point; choose another place.";
      return;
    }
    measuring.add(point);
    const { distance } = measuring;
    panel.measured = distance === null ? "Choose the second point." : `Distance: ${inMetres(distance)}`;
    redraw();
  };
  let whole = -1; // the last level that is here
  const load = async (last) => {
    const { cloud } = clouds[0];
    for (let level = whole + 1; level <= last; level++) {
      let begun = performance.now();
      try {
        await loadLevel(description.source, level, async (block, bytes) => {
          cloud.add(block, bytes, 0);
          if (performance.now() - begun < BUSY) return;
          if (level > 0) redrawSoon();
          await new Promise((done) => setTimeout(done)); // so that it is drawn meanwhile
          begun = performance.now();
        });
      } catch (error) {
        cloud.drop(level);
        redraw();
        throw error;
      }
      cloud.finish(level);
      whole = level;
      document.documentElement.dataset.level = level;
      redraw();
    }
  };
  const actions = {
    load,
    reset: () => navigation.reset(),
    toggleMeasuring: () => {
      measure(!measures);
      if (measures) canvas.focus();
    },
    stopMeasuring: () => measure(false),
    pickAtCross: () => measures && takePoint(canvas.clientWidth / 2, canvas.clientHeight / 2),
    toggleCameras: () => panel.toggleCameras(),
    nextLayer: () => clouds.length > 1 && panel.nextLayer(),
    lookFrom: (index) => {
      const view = clouds[panel.layer].cameras.views[index];
      if (view) navigation.from(view.matrix, radius);
    },
  };
  const panel = new Panel(description, actions, redraw);
  listenToKeys(canvas, navigation, actions);
  listenToClicks((x, y) => measures && takePoint(x, y));
  canvas.addEventListener("dblclick", (event) => {
    const point = measures ? null : pickAt(event.offsetX, event.offsetY);
    if (point !== null) navigation.about(point);
  });
  new ResizeObserver(redraw).observe(canvas);
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    message.textContent = "The graphics processor gave up; load the page again.";
  });

  function draw(now) {
    frame = 0;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    const { cloud, cameras } = clouds[panel.layer];
    const coarse = now - movedAt < still && slow;
    const ratio = Math.min(window.devicePixelRatio, 2) * (coarse && blurs ? 0.5 : 1);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      renderer.setPixelRatio(ratio);
      renderer.setSize(width, height, false);
      camera.aspect = width / height;
      camera.updateProjectionMatrix();
    }
    for (const each of clouds) {
      each.cloud.group.visible = each.cloud === cloud;
      each.cameras.group.visible = false;
    }
    camera.updateMatrixWorld();
    const began = performance.now();
    cloud.draw(
      panel.size, panel.least, canvas.width, canvas.height, camera, panel.shownViews, coarse ? share : null,
    );
    cameras.draw(panel.cameras, panel.images, panel.frustum, panel.shownViews, camera.position);
    measuring.draw(camera);
    scene.background = new Color(getComputedStyle(document.getElementById("stage")).backgroundColor);
    renderer.render(scene, camera);
    // Browsers do not wait in finish(), but until a pixel can be told.
    const context = renderer.getContext();
    context.readPixels(0, 0, 1, 1, context.RGBA, context.UNSIGNED_BYTE, pixel);
    canvas.dataset.points = cloud.drawn;
    drawnAt = performance.now();
    took = drawnAt - began;
    if (!coarse) {
      slow = took > SLOW;
      still = Math.min(Math.max(STILL, took), PATIENCE);
    } else if (took > SMOOTH) {
      if (blurs) share = Math.max(share * 0.7, LEAST);
      blurs = true;
    } else if (took < EASY) share = Math.min(share * 1.2, 1);
    placeLabel(width, height);
    panel.write(cloud.count(panel.least, panel.shownViews), cloud.loaded());
    if (coarse) redraw(); // until it stands still, and everything is drawn
  }

  function placeLabel(width, height) {
    label.hidden = measuring.distance === null;
    if (label.hidden) return;
    const place = measuring.middle.project(camera);
    label.hidden = place.z > 1;
    label.textContent = inMetres(measuring.distance);
    label.style.left = `${((place.x + 1) / 2) * width}px`;
    label.style.top = `${((1 - place.y) / 2) * height}px`;
  }

  if (description.source === null) {
    const bytes = await readBytes();
    let position = 0;
    for (const { cloud } of clouds) {
      for (const block of cloud.layer.blocks) {
        cloud.add(block, bytes, position);
        position += BYTES_PER_POINT * block.count;
      }
      cloud.finish(0);
    }
  } else await load(0);
  message.textContent = "";
  isReady = true;
  draw(performance.now());
  document.documentElement.dataset.state = "ready";
  for (const { cameras } of clouds) cameras.load();
  if (description.source !== null) await panel.load(1, load);
}

/** Whether WebGL is drawn without a graphics processor: then smooth edges would take most of the time. */
function isSoftware() {
  const context = document.createElement("canvas").getContext("webgl2");
  const names = context?.getExtension("WEBGL_debug_renderer_info");
  const name = names ? context.getParameter(names.UNMASKED_RENDERER_WEBGL) : "";
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

/** Call `click` with the place of a press that did not drag. */
function listenToClicks(click) {
  let down = null;
  canvas.addEventListener("pointerdown", (event) => {
    down = event.isPrimary && event.button === 0 ? [event.offsetX, event.offsetY] : null;
  });
  canvas.addEventListener("pointerup", (event) => {
    if (down && Math.hypot(event.offsetX - down[0], event.offsetY - down[1]) < 5) click(event.offsetX, event.offsetY);
    down = null;
  });
}
