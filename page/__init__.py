"""The page of explain.py: what happens in a model while it reads and continues a text.

record.py   runs the model and records what happens in it
data.py     packs the records into one HTML file: page.html with style.css and the scripts
data.js     unpacks the data and answers the panels' questions about it
parts.js    draws what several panels need: tables, bars, colours, small charts
strip.js    shows the text and what comes next
lens.js, attention.js, stream.js, why.js, choosing.js: one panel each
main.js     starts the page, keeps its state in the address, and handles the keys
"""
