"""The report of a sweep: one page to read, as HTML and as Markdown, and its data.

Told from the bottom: `rows` reads trials from the study database, `reading` makes `facts` of them,
`advice` says by plain rules what to try next, `comparing` holds sweeps side by side; `pictures`
draws SVG; `page` and `comparison_page` put all that into blocks (`document`), which `html` and
`markdown` write, each with its own escaping; `delivery` logs the files to the parent runs.
"""
