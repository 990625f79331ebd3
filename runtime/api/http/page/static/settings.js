// The dialog of settings. Each field is kept as soon as it changes.

import { el } from "./dom.js";
import { DEFAULTS, saveSettings } from "./store.js";

/** Connects the dialog with `settings`, which it changes in place. `onChange` is called after each change. */
export function connectSettings(dialog, settings, onChange) {
  const form = dialog.querySelector("form");
  const fill = () => {
    for (const name of Object.keys(DEFAULTS)) {
      const field = form.elements[name];
      if (field.type === "checkbox") field.checked = settings[name];
      else field.value = settings[name];
    }
    tellSource(form);
  };
  form.addEventListener("input", () => {
    for (const name of Object.keys(DEFAULTS)) {
      const field = form.elements[name];
      if (field.type === "checkbox") settings[name] = field.checked;
      else if (field.validity.valid) settings[name] = field.value;
    }
    tellSource(form);
    saveSettings(settings);
    onChange(settings);
  });
  dialog.querySelector("#reset-settings").addEventListener("click", () => {
    Object.assign(settings, DEFAULTS);
    fill();
    saveSettings(settings);
    onChange(settings);
  });
  return () => {
    fill();
    dialog.showModal();
  };
}

/** Puts the presets that the server knows into the dialog. */
export function offerPresets(dialog, offered, chosen) {
  const select = dialog.querySelector("select[name=preset]");
  const own = el("option", { value: "" }, `the server's (${offered.default})`);
  const others = offered.data.map((preset) => el("option", { value: preset.id, "data-source": preset.description }, preset.id));
  select.replaceChildren(own, ...others);
  select.value = chosen;
  if (select.selectedIndex < 0) select.value = "";
}

/** Shows light or dark; `auto` follows the system. */
export function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** The theme that is not shown now. */
export function otherTheme(theme) {
  const dark = theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : theme === "dark";
  return dark ? "light" : "dark";
}

function tellSource(form) {
  const option = form.elements.preset.selectedOptions[0];
  form.querySelector("#preset-source").textContent = option?.dataset.source || "";
}
