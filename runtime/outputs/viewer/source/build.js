// Writes ../page.html: the page with its style and its script in it, and room for a scene.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const SOURCES = [
  "build.js", "package-lock.json", "package.json", "page.html", "../colors.css", "style.css",
  "src/cameras.js", "src/keyboard.js", "src/main.js", "src/measuring.js", "src/navigation.js", "src/panel.js",
  "src/points.js", "src/scene_data.js", "src/splatting.js",
];

const read = (path) => readFileSync(new URL(path, import.meta.url), "utf8");

const digest = createHash("sha256");
for (const source of SOURCES) digest.update(`${source}\n${read(source)}\n`);

const bundled = await build({
  absWorkingDir: new URL(".", import.meta.url).pathname,
  entryPoints: ["src/main.js"],
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome100", "firefox113", "safari16.4"],
  charset: "utf8",
  legalComments: "none",
  write: false,
});
const script = bundled.outputFiles[0].text.replaceAll("</script", "<\\/script");
const licence = read("node_modules/three/LICENSE").trim().replaceAll("*/", "* /");
const parts = {
  SOURCES: digest.digest("hex"),
  STYLE: `${read("../colors.css")}${read("style.css").trim()}`,
  SCRIPT: `/* Contains parts of three.js.\n\n${licence}\n*/\n${script.trim()}`,
};
const page = read("page.html").replace(/\{\{(SOURCES|STYLE|SCRIPT)\}\}/g, (_, name) => parts[name]);
writeFileSync(new URL("../page.html", import.meta.url), page);
writeFileSync(new URL("../LICENSE-three.txt", import.meta.url), `${read("node_modules/three/LICENSE").trim()}\n`);
console.log(`page.html: ${page.length} characters`);
