// Compiles the standard JSON input on standard input and prints solc's output. The folder of npm packages is the only
// argument: the compiler and every import outside the sources come from there.
"use strict";

const { readFileSync } = require("node:fs");
const { join, normalize } = require("node:path");

const packages = process.argv[2];
const solc = require(join(packages, "solc"));

function findImport(name) {
  const path = normalize(name);
  if (path.startsWith("..") || path.startsWith("/")) return { error: `not a package: ${name}` };
  try {
    return { contents: readFileSync(join(packages, path), "utf8") };
  } catch {
    return { error: `not found: ${name}` };
  }
}

process.stdout.write(solc.compile(readFileSync(0, "utf8"), { import: findImport }));
