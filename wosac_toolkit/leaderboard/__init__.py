"""The leaderboard: published results and local runs, side by side.

========  ====================================================================================
`entry`   one entry: its fields, its JSON file, and whether its numbers add up
`board`   all of them: where they lie, checks over a folder, who can be compared with whom
`add`     the entry of a run of `wosac score`
`pages`   the static page
========  ====================================================================================
"""
