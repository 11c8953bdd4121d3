"use strict";
const byId = (id) => document.getElementById(id);
const FOLD = 0.98;  // cosine from which two images are told as one
const images = { search: null, classify: null };  // the file that each form holds
let question = 0;  // an answer to an earlier question is not shown

fetch("api/about").then((answer) => answer.json()).then((about) => {
  byId("about").textContent = `${about.images.toLocaleString()} 张图片 · 模型 ${about.model}`;
});

// ---- the two forms ----

const tabs = [...document.querySelectorAll("[role=tab]")];
function show(tab) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", chosen);
    other.tabIndex = chosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  clear();
}
tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    show(next);
    next.focus();
  });
});
const openForm = () => document.querySelector("form:not([hidden])");

function hold(form, file) {
  images[form.id] = file;
  const preview = form.querySelector("[data-preview]");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = !file;
  form.querySelector("[data-clear]").hidden = !file;
  form.querySelector("[data-hint]").hidden = Boolean(file);
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
  form.querySelector("[data-file]").value = "";
  if (file && form.id === "search") search();
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
byId("image_weight").addEventListener("input", (event) => {
  byId("weight-shown").textContent = `${Math.round(100 * event.target.value)}%`;
});

// ---- questions and answers ----

const words = (id) => byId(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));
const day = (id, after) => {
  if (!byId(id).value) return null;
  const moment = new Date(`${byId(id).value}T00:00`);
  moment.setDate(moment.getDate() + after);
  return moment.getTime() / 1000;
};

function search(like = null) {
  const options = {
    texts: like === null ? words("text") : [], minus: words("minus"), like, folder: byId("folder").value.trim() || null,
    since: day("since", 0), until: day("until", 1), threshold: number("threshold"), top_k: number("top_k"),
    image_weight: number("image_weight"), fold: byId("fold").checked ? FOLD : null,
  };
  const image = like === null ? images.search : null;
  if (!options.texts.length && !image && like === null) return say("请输入文字，或给一张图片。", true);
  ask("api/search", options, image, showHits);
}

function classify() {
  const labels = words("labels");
  if (!images.classify) return say("请先给一张图片。", true);
  if (labels.length < 2) return say("请至少写两个类别，每行一个。", true);
  ask("api/classify", { labels }, images.classify, showBars);
}

async function ask(address, options, image, showAnswer) {
  const mine = ++question;
  clear();
  say("正在计算……");
  byId("progress").removeAttribute("value");
  byId("progress").hidden = false;
  try {
    const body = new Blob([JSON.stringify(options), "\n", ...(image ? [image] : [])]);
    const response = await fetch(address, { method: "POST", body });
    const answer = await response.json();
    if (mine !== question) return;
    byId("progress").hidden = true;
    response.ok ? showAnswer(answer) : say(answer.error, true);
  } catch (error) {
    if (mine === question) { byId("progress").hidden = true; say(`服务器没有回答：${error.message}`, true); }
  }
}

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}
function clear() {
  say("");
  byId("results").replaceChildren();
  byId("bars").replaceChildren();
  byId("meaning").hidden = byId("progress").hidden = true;
}

function showHits({ hits }) {
  say(hits.length ? `${hits.length} 个结果` : "没有符合条件的图片。");
  byId("meaning").hidden = !hits.length;
  byId("progress").hidden = !hits.length;
  byId("progress").max = hits.length;
  byId("progress").value = 0;
  const mine = question;
  for (const hit of hits) {
    const card = byId("card").content.cloneNode(true);
    const picture = card.querySelector("img");
    const settle = () => {
      if (mine !== question) return;
      byId("progress").value += 1;
      byId("progress").hidden = byId("progress").value >= hits.length;
    };
    picture.addEventListener("load", settle);
    picture.addEventListener("error", () => { picture.alt = "图片已不在或已改变"; settle(); });
    picture.loading = "eager";
    picture.alt = hit.path.split("/").pop();
    picture.src = `thumbnail/${hit.id}`;
    card.querySelector("a").href = `image/${hit.id}`;
    card.querySelector(".score").textContent = `得分 ${hit.score.toFixed(3)}`;
    card.querySelector(".path").textContent = hit.path;
    card.querySelector("[data-like]").addEventListener("click", () => { window.scrollTo(0, 0); search(hit.id); });
    card.querySelector("[data-copy]").addEventListener("click", (event) => copy(hit.path, event.target));
    const more = hit.duplicates.length;
    card.querySelector(".more").textContent = more ? `另有 ${more} 张几乎相同：${hit.duplicates.map((d) => d.path.split("/").pop()).join("、")}` : "";
    byId("results").append(card);
  }
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

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // without https, browsers have no clipboard for pages of other machines
    const field = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  const before = button.textContent;
  button.textContent = "已复制";
  setTimeout(() => { button.textContent = before; }, 1500);
}
