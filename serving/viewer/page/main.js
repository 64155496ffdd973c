// The page of `mapengine view`: one scene. It asks the server that it came from alone.

import { ask } from "./ask.js";
import { ResultView } from "./result.js";

const about = JSON.parse(document.getElementById("about").textContent);

document.getElementById("shown").hidden = false;
new ResultView(about, ask, () => ".").show(about.result);
document.documentElement.dataset.state = "ready";
