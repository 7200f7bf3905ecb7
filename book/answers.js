// A line to type an answer into, at each exercise whose answer is a formula; expression.js reads and grades it.
"use strict";

function answerLine(place) {
  const exercise = JSON.parse(place.dataset.exercise);
  const form = document.createElement("form");
  const label = document.createElement("label");
  const field = document.createElement("input");
  const button = document.createElement("button");
  const said = document.createElement("output");
  const names = exercise.arguments.length ? ` of ${exercise.arguments.join(", ")}` : "";
  label.textContent = `${exercise.id}: a ${exercise.arguments.length ? "formula" : "number"}${names}`;
  Object.assign(field, { type: "text", spellcheck: false, autocomplete: "off", maxLength: 1000 });
  field.setAttribute("autocapitalize", "off");
  button.textContent = "grade";
  label.append(field);
  form.append(label, button, said);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const sentence = verdict(exercise, field.value);
    said.textContent = `${exercise.id}: ${sentence}`;
    said.className = sentence.startsWith("right") ? "right" : "";
  });
  place.replaceChildren(form);
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".answer").forEach(answerLine));
