"use strict";
const byId = (id) => document.getElementById(id);
const FOLD = 0.98;  // images with at least this cosine are shown as one
const PER_REQUEST = 48, MOST_RESULTS = 2000, MOST_IN_ZIP = 500;
const images = { search: null, classify: null };  // form → chosen file
let like = null;  // the gallery image to search by: {id, digest, path}
let latest = 0;  // number of the last request; answers to earlier ones are dropped
let shown = [];  // the images on the page, in order
let asked = null;  // what the results answer: { options, image, meaning }; the form may have changed since
let loaded = 0;  // hits on the page; opened duplicates do not count
const selected = new Map();  // id → path

// ---- messages ----

const REASONS = {
  host: "请用服务器启动时打印的地址打开本页。",
  token: "请用服务器启动时打印的地址打开本页，它带有令牌。",
  origin: "服务器不接受其他网站发来的请求。",
  busy: "服务器正忙，请稍后再试。",
  slow: "上传太慢，已中断，请再试一次。",
  aborted: "上传中断了，请再试一次。",
  too_large: "图片太大，最多 20 MB。",
  question: "有的条件无效，请检查“更多条件”。",
  no_image: "库里已经没有这张图片。",
  gone: "原图已被删除，或内容已改变。",
  no_plugin: "打不开这种图片（如 HEIC、JPEG XL），请先转成 JPEG 或 PNG。",
  other_format: "打不开这种图片，请先转成 JPEG 或 PNG。",
  svg: "打不开 SVG，请先转成 PNG。",
  not_image: "这不是图片。",
  html: "这不是图片，而是网页。",
  empty: "这个文件是空的。",
  truncated: "图片不完整。",
  too_many_pixels: "图片的像素太多，请先缩小。",
  long_and_narrow: "图片太窄太长。",
};
const wordsFor = ({ code, error }) => REASONS[code] ?? `图片打不开（${error}）。`;
const nameOf = (path) => path.slice(path.lastIndexOf("/") + 1);
// Different names must look different: white space other than a plain space, control characters and characters that
// change the writing direction are shown as escapes. Copying gives the exact name.
const visible = (text) => text.replace(/(?! )[\s\p{Cc}\p{Cs}\u061c\u200e\u200f\u202a-\u202e\u2066-\u206f]/gu,
  (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}
function clear() {
  say("");
  shown = [];
  loaded = 0;
  for (const id of ["results", "bars", "end"]) byId(id).replaceChildren();
  byId("absent").hidden = byId("progress").hidden = true;
}

// ---- requests ----

async function request(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error("连不上服务器：它可能已经停了。");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(wordsFor(answer));
  return answer;
}
const post = (address, options, image) =>
  request(address, { method: "POST", body: new Blob([JSON.stringify(options), "\n", ...(image ? [image] : [])]) });

async function ask(address, options, image, showAnswer) {
  const mine = ++latest;
  clear();
  say("正在计算……");
  byId("progress").hidden = false;
  try {
    const answer = await post(address, options, image);
    if (mine === latest) { byId("progress").hidden = true; showAnswer(answer); }
  } catch (error) {
    if (mine === latest) { byId("progress").hidden = true; say(error.message, true); }
  }
}

// ---- the two forms ----

const tabs = [...document.querySelectorAll("[role=tab]")];
function show(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  latest += 1;
  clear();
}
tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = tabs[(index + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
});
const openForm = () => document.querySelector("form:not([hidden])");

function hold(form, file, isNew = true) {
  images[form.id] = file;
  const preview = form.querySelector("[data-preview]");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = !file;
  form.querySelector("[data-clear]").hidden = !file;
  form.querySelector("[data-hint]").hidden = Boolean(file);
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
  form.querySelector("[data-file]").value = "";
  if (file && isNew && form.id === "search") { setLike(null); search(); }
}
for (const form of document.forms) {
  const drop = form.querySelector("[data-drop]");
  form.querySelector("[data-file]").addEventListener("change", (event) => hold(form, event.target.files[0] ?? null));
  form.querySelector("[data-clear]").addEventListener("click", () => hold(form, null));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      const file = kind === "drop" && [...event.dataTransfer.files].find((file) => file.type.startsWith("image/"));
      if (file) hold(form, file);
    });
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    form.id === "search" ? search() : classify();
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((file) => file.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  hold(openForm(), file);
});

// ---- the search, and its state in the address ----

const FIELDS = ["text", "minus", "folder", "since", "until", "threshold", "image_weight"];
const DEFAULTS = { image_weight: "0.5" };
const lines = (id) => byId(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
const day = (id, after) => {
  if (!byId(id).value) return null;
  const moment = new Date(`${byId(id).value}T00:00`);
  moment.setDate(moment.getDate() + after);
  return moment.getTime() / 1000;
};

function setLike(image) {
  like = image;
  byId("like").hidden = !image;
  if (!image) return;
  byId("like").querySelector("img").src = `thumbnail/${image.digest}`;
  byId("like").querySelector("span").textContent = `与“${visible(nameOf(image.path))}”相似的`;
}
byId("like").querySelector("button").addEventListener("click", () => { setLike(null); search(); });
function findLike(image) {
  byId("viewer").close();
  if (tabs[0].ariaSelected !== "true") show(tabs[0]);
  hold(byId("search"), null);
  byId("text").value = "";  // or it would be part of the query
  setLike(image);
  window.scrollTo(0, 0);
  search();
}

function toAddress() {
  const state = new URLSearchParams();
  for (const id of FIELDS) {
    if (byId(id).value !== (DEFAULTS[id] ?? "")) state.set(id, byId(id).value);
  }
  if (!byId("fold").checked) state.set("fold", "0");
  if (like) state.set("like", [like.id, like.digest, like.path].join("|"));
  return state.toString();
}
function fromAddress() {
  const state = new URLSearchParams(location.search);
  for (const id of FIELDS) {
    const value = state.get(id) ?? DEFAULTS[id] ?? "";
    if (id === "folder" && value && ![...byId(id).options].some((o) => o.value === value)) addFolder(value, value);
    byId(id).value = value;
  }
  byId("fold").checked = state.get("fold") !== "0";
  const [, id, digest, path] = /^(\d{1,15})\|([0-9a-f]{32})\|(.*)$/s.exec(state.get("like") ?? "") ?? [];
  setLike(id ? { id: Number(id), digest, path } : null);
  describe();
  if (!canSearch()) return showSamples();
  run();
}
const canSearch = () => Boolean(lines("text").length || lines("minus").length || like || images.search);

function describe() {
  byId("weight-shown").textContent = `${Math.round(100 * byId("image_weight").value)}%`;
  const inForce = ["minus", "folder", "since", "until", "threshold"].filter((id) => byId(id).value).length;
  byId("in-force").textContent = inForce ? `（${inForce} 项在用）` : "";
}
byId("search").addEventListener("input", describe);

function options() {
  return {
    texts: lines("text"), minus: lines("minus"), like: like ? [like.id] : [], folder: byId("folder").value || null,
    since: day("since", 0), until: day("until", 1), threshold: number("threshold"), top_k: PER_REQUEST,
    image_weight: number("image_weight"), fold: byId("fold").checked ? FOLD : null,
  };
}
function search() {
  if (!canSearch()) return say("请输入文字，或给一张图片。", true);
  const address = toAddress();
  if (address !== location.search.slice(1)) history.pushState(null, "", `?${address}`);
  run();
}
function run() {
  describe();
  asked = { options: options(), image: images.search, meaning: meaning() };
  ask("api/search", asked.options, asked.image, (answer) => {
    byId("absent").hidden = !answer.probably_absent || !answer.hits.length;
    showHits(answer.hits);
    if (!answer.hits.length) say("没有符合条件的图片。");
  });
}
addEventListener("popstate", () => { hold(byId("search"), null, false); latest += 1; clear(); fromAddress(); });

function meaning() {
  const parts = [];
  if (like) parts.push(`与“${visible(nameOf(like.path))}”相似`);
  if (images.search) parts.push("与给出的图片相似");
  if (lines("text").length) parts.push(`“${lines("text").join("”“")}”`);
  const minus = lines("minus").length ? `，不要“${lines("minus").join("”“")}”` : "";
  return parts.join(" + ") + minus;
}

let isLoading = false;
function showHits(hits) {
  for (const hit of hits) byId("results").append(card(hit));
  shown.push(...hits);
  loaded += hits.length;
  const isAll = hits.length < PER_REQUEST || loaded >= MOST_RESULTS;
  say(`${asked.meaning}：${loaded} 个结果${isAll ? "" : "，往下滚动加载更多"}`);
  byId("end").textContent = isAll ? "" : "正在加载更多……";
  byId("end").dataset.more = isAll ? "" : "yes";
  isLoading = false;
}
new IntersectionObserver(async (entries) => {
  if (!entries.some((entry) => entry.isIntersecting) || !byId("end").dataset.more || isLoading) return;
  isLoading = true;
  const mine = latest;
  try {
    const { hits } = await post("api/search", { ...asked.options, offset: loaded }, asked.image);
    if (mine === latest) showHits(hits);
  } catch (error) {
    if (mine === latest) { byId("end").textContent = error.message; byId("end").dataset.more = ""; }
  }
  isLoading = false;
}, { rootMargin: "800px" }).observe(byId("end"));

// ---- cards ----

function card(hit, isDuplicate = false) {
  const item = byId("card").content.cloneNode(true).firstElementChild;
  const opener = item.querySelector(".open"), image = opener.querySelector("img");
  image.alt = visible(nameOf(hit.path));
  image.addEventListener("error", () => { image.alt = `${visible(nameOf(hit.path))}：原图已被删除或已改变`; });
  image.src = `thumbnail/${hit.digest}`;
  opener.classList.toggle("gone", hit.absent);
  opener.addEventListener("click", () => view(hit));
  item.classList.toggle("duplicate", isDuplicate);
  item.title = visible(hit.path);
  item.querySelector(".name").textContent = visible(nameOf(hit.path));
  item.querySelector(".caption").textContent = hit.caption;
  const notes = [hit.score === undefined ? "" : `得分 ${hit.score.toFixed(3)}`, hit.absent ? "原图所在的磁盘未连接" : ""];
  item.querySelector(".score").textContent = notes.filter(Boolean).join(" · ");
  item.querySelector("[data-like]").addEventListener("click", () => findLike(hit));
  item.querySelector("[data-copy]").addEventListener("click", (event) => copy(hit.path, event.target));
  const pick = item.querySelector(".pick input");
  pick.checked = selected.has(hit.id);
  pick.addEventListener("change", () => {
    pick.checked ? selected.set(hit.id, hit.path) : selected.delete(hit.id);
    showSelection();
  });
  const more = item.querySelector("[data-more]"), folded = hit.duplicates ?? [];
  more.hidden = !folded.length;
  more.textContent = `另有 ${folded.length} 张几乎相同`;
  more.addEventListener("click", () => {
    item.after(...folded.map((duplicate) => card(duplicate, true)));
    shown.splice(shown.indexOf(hit) + 1, 0, ...folded);
    more.hidden = true;
  }, { once: true });
  return item;
}

let about = null;
function showSamples() {
  if (!about) return;
  shown = about.samples.map((image) => ({ ...image, score: undefined }));
  byId("results").append(...shown.map((image) => card(image)));
  say(about.images ? "输入想找的内容，例如“雪地里的老虎”，或者给一张图片。库里的一些图片：" : "库里还没有图片。");
}
function addFolder(value, label) {
  byId("folder").append(Object.assign(document.createElement("option"), { value, textContent: label }));
}
function listFolders(folders) {
  const total = new Map(), children = new Map();
  for (const [folder, count] of Object.entries(folders)) {
    for (let path = folder, child = null; path; child = path, path = path.slice(0, Math.max(0, path.lastIndexOf("/")))) {
      total.set(path, (total.get(path) ?? 0) + count);
      if (!children.has(path)) children.set(path, new Set());
      if (child) children.get(path).add(child);
    }
  }
  for (const path of [...total.keys()].sort()) {
    // A folder that contains only one other folder is not listed.
    if (path in folders || children.get(path).size > 1) addFolder(path, `${visible(path)}（${total.get(path)}）`);
  }
}

// ---- selecting several ----

function showSelection() {
  const bar = byId("selection");
  bar.hidden = !selected.size;
  const isTooMany = selected.size > MOST_IN_ZIP;
  bar.querySelector("span").textContent = `已选 ${selected.size} 张${isTooMany ? `，zip 最多 ${MOST_IN_ZIP} 张` : ""}`;
  bar.querySelector("a").hidden = isTooMany;
  bar.querySelector("a").href = `images.zip?ids=${[...selected.keys()].join(",")}`;
}
byId("selection").querySelector("[data-copy-all]").addEventListener("click", (event) => {
  copy([...selected.values()].join("\n"), event.target);
});
byId("selection").querySelector("[data-none]").addEventListener("click", () => {
  selected.clear();
  for (const pick of document.querySelectorAll(".pick input")) pick.checked = false;
  showSelection();
});

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // without https, browsers deny the clipboard to pages of other machines
    const field = Object.assign(document.createElement("textarea"), { value: text });
    (byId("viewer").open ? byId("viewer") : document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const before = button.textContent;
  button.textContent = "已复制";
  setTimeout(() => { button.textContent = before; }, 1500);
}

// ---- the viewer ----

const viewer = byId("viewer"), stage = viewer.querySelector(".stage"), large = stage.querySelector("img");
let viewed = null, zoom = 1;
function view(hit) {
  viewed = hit;
  setZoom(1);
  large.alt = visible(nameOf(hit.path));
  large.src = `thumbnail/${hit.digest}`;
  const whole = new Image();
  whole.addEventListener("load", () => { if (viewed === hit) large.src = whole.src; });
  whole.addEventListener("error", () => { if (viewed === hit) viewer.querySelector(".caption").textContent = REASONS.gone; });
  whole.src = `image/${hit.digest}`;
  viewer.querySelector(".name").textContent = visible(nameOf(hit.path));
  viewer.querySelector(".path").textContent = visible(hit.path);
  viewer.querySelector(".caption").textContent = hit.caption;
  viewer.querySelector("a").href = whole.src;
  if (!viewer.open) viewer.showModal();
}
function setZoom(value) {
  zoom = Math.min(Math.max(value, 1), 16);
  stage.classList.toggle("zoomed", zoom > 1);
  large.style.width = "";
  if (zoom > 1) {
    const fit = Math.min(stage.offsetWidth / large.naturalWidth, stage.offsetHeight / large.naturalHeight, 1);
    large.style.width = `${Math.round(large.naturalWidth * fit * zoom)}px`;
  }
}
function step(by) {
  const index = shown.findIndex((hit) => hit.id === viewed.id);
  const next = shown[index + by];
  if (next) view(next);
}
for (const button of viewer.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
for (const button of viewer.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => setZoom(zoom * button.dataset.zoom));
viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
viewer.querySelector("[data-like]").addEventListener("click", () => findLike(viewed));
viewer.querySelector("[data-copy]").addEventListener("click", (event) => copy(viewed.path, event.target));
viewer.addEventListener("keydown", (event) => {
  const act = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => setZoom(zoom * 1.5), "=": () => setZoom(zoom * 1.5),
    "-": () => setZoom(zoom / 1.5), 0: () => setZoom(1),
  }[event.key];
  if (act) { event.preventDefault(); act(); }
});
stage.addEventListener("wheel", (event) => { event.preventDefault(); setZoom(zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2)); });
let dragged = null;
large.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  dragged = { x: event.clientX, y: event.clientY, left: stage.scrollLeft, top: stage.scrollTop, moved: false };
});
stage.addEventListener("pointermove", (event) => {
  if (!dragged || !event.buttons) return;
  dragged.moved ||= Math.hypot(event.clientX - dragged.x, event.clientY - dragged.y) > 5;
  stage.scrollTo(dragged.left + dragged.x - event.clientX, dragged.top + dragged.y - event.clientY);
});
large.addEventListener("click", () => { if (!dragged?.moved) setZoom(zoom > 1 ? 1 : 2.5); dragged = null; });

// ---- classification ----

function classify() {
  const labels = lines("labels");
  if (!images.classify) return say("请先给一张图片。", true);
  if (labels.length < 2) return say("请至少写两个类别，每行一个。", true);
  ask("api/classify", { labels }, images.classify, showBars);
}
function showBars({ labels }) {
  say("");
  for (const { label, share, cosine } of labels) {
    const [item, name, meter, figure] = ["li", "span", "meter", "span"].map((tag) => document.createElement(tag));
    name.textContent = label;
    meter.value = share;
    meter.textContent = figure.textContent = `${(100 * share).toFixed(1)}%`;
    item.title = `余弦 ${cosine.toFixed(3)}`;
    item.append(name, meter, figure);
    byId("bars").append(item);
  }
}

// ---- the start ----

if (new URLSearchParams(location.search).has("token")) history.replaceState(null, "", location.pathname);  // now a cookie
request("api/about").then((answer) => {
  about = answer;
  const absent = about.absent ? `（其中 ${about.absent.toLocaleString()} 张所在的磁盘未连接）` : "";
  byId("about").textContent = `${about.images.toLocaleString()} 张图片${absent} · 模型 ${about.model}`;
  listFolders(about.folders);
  fromAddress();
}).catch((error) => say(error.message, true));
