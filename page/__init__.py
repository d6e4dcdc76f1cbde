"""The page of explain.py: data.py writes what it holds, data.js reads it, the other scripts draw.

page.html   the words, and where the pictures go
style.css   light and dark, wide and narrow
data.js     what the panels ask of the data: tokens, weights, products, probabilities, shares
parts.js    tables, bars, colours, small charts
strip.js    the text and what comes next
lens.js, attention.js, stream.js, why.js, choosing.js: a panel each
main.js     one state, which the address keeps; keys; the start
"""
