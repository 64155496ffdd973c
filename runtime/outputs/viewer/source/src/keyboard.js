const TURN = 0.12;
const MOVE = 0.06;
const ZOOM = 1.15;

/** Let the keys of the canvas do what mouse and touch do; `actions` are the rest. */
export function listenToKeys(canvas, navigation, actions) {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const arrow = arrows[event.key];
    const key = event.key.toLowerCase();
    if (arrow && event.shiftKey) navigation.move(MOVE * arrow[0], MOVE * arrow[1]);
    else if (arrow) navigation.turn(TURN * arrow[0], -TURN * arrow[1]);
    else if (key === "+" || key === "=") navigation.zoom(1 / ZOOM);
    else if (key === "-" || key === "_") navigation.zoom(ZOOM);
    else if (key === "r") navigation.reset();
    else if (key === "c") actions.toggleCameras();
    else if (key === "l") actions.nextLayer();
    else if (key === "m") actions.toggleMeasuring();
    else if (key === "enter") actions.pickAtCross();
    else if (key === "escape") actions.stopMeasuring();
    else if (key >= "1" && key <= "9") actions.lookFrom(Number(key) - 1);
    else return;
    event.preventDefault();
  });
}
