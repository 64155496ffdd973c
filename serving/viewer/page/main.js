// The page of `mapengine view`: one scene. It asks the server that it came from alone.

import { ResultView } from "./result.js";

const about = JSON.parse(document.getElementById("about").textContent);

async function ask(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error("The server does not answer; is it still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

document.getElementById("shown").hidden = false;
new ResultView(about, ask, () => ".").show(about.result);
document.documentElement.dataset.state = "ready";
