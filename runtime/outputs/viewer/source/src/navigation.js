import { MOUSE, Matrix4, Quaternion, TOUCH, Vector3 } from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";

/** Turning, moving and zooming, by mouse, touch and the steps that keys ask for. */
export class Navigation {
  constructor(camera, canvas, start, changed) {
    this.camera = camera;
    this.start = start;
    camera.up.fromArray(start.up);
    this.controls = new OrbitControls(camera, canvas);
    this.controls.mouseButtons = { LEFT: MOUSE.ROTATE, MIDDLE: MOUSE.DOLLY, RIGHT: MOUSE.PAN };
    this.controls.touches = { ONE: TOUCH.ROTATE, TWO: TOUCH.DOLLY_PAN };
    this.controls.zoomToCursor = true;
    this.controls.addEventListener("change", changed);
    this.reset();
  }

  reset() {
    this.look(new Vector3().fromArray(this.start.position), new Vector3().fromArray(this.start.target));
  }

  look(position, target) {
    this.camera.position.copy(position);
    this.controls.target.copy(target);
    this.controls.update();
  }

  /** Look from a camera of the scene; `pose` is camera-to-world with z forward. */
  from(pose, distance) {
    const place = new Vector3().setFromMatrixPosition(pose);
    const forward = new Vector3(pose.elements[8], pose.elements[9], pose.elements[10]);
    this.look(place, place.clone().addScaledVector(forward, distance));
  }

  /** Turn about the target by angles in radians. */
  turn(around, over) {
    const { camera, controls } = this;
    const arm = camera.position.clone().sub(controls.target);
    const up = camera.up;
    const polar = arm.angleTo(up);
    const right = new Vector3().crossVectors(up, arm).normalize();
    const tilt = Math.min(Math.max(polar + over, 0.02), Math.PI - 0.02) - polar;
    arm.applyQuaternion(new Quaternion().setFromAxisAngle(right, tilt));
    arm.applyQuaternion(new Quaternion().setFromAxisAngle(up, around));
    this.look(controls.target.clone().add(arm), controls.target);
  }

  /** Move the camera and what it turns about, in shares of their distance. */
  move(right, up) {
    const { camera, controls } = this;
    const step = camera.position.distanceTo(controls.target);
    const axes = new Matrix4().makeRotationFromQuaternion(camera.quaternion);
    const shift = new Vector3(right * step, up * step, 0).applyMatrix4(axes);
    this.look(camera.position.clone().add(shift), controls.target.clone().add(shift));
  }

  /** Go to `factor` times the distance. */
  zoom(factor) {
    const { camera, controls } = this;
    const arm = camera.position.clone().sub(controls.target).multiplyScalar(factor);
    this.look(controls.target.clone().add(arm), controls.target);
  }

  /** Turn about another point. */
  about(point) {
    this.look(this.camera.position.clone(), point);
  }
}
