// Sets light or dark before anything is drawn. Without a choice the system decides.
{
  const chosen = JSON.parse(localStorage.getItem("moorage.settings") || "{}").theme;
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
