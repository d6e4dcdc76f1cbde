"""The page of explain.py, and what the command records for it.

record.py   runs the model and records what happens in it
data.py     packs the records into one HTML file, page.html with style.css
data.js     what the panels ask of the data: tokens, attention, probabilities, attribution
parts.js    tables, bars, colours, small charts
strip.js    the text and what comes next
lens.js, attention.js, stream.js, why.js, choosing.js: one panel each
main.js     the state, which the address keeps; keys; the start
"""
