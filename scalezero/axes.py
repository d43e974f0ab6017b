"""The vocabulary of array axes: every axis named in an annotation is one of these.

An axis has one meaning in the whole package. A test holds the annotations to this list.
"""

AXES: dict[str, str] = {
    # where a row of data is from
    "task": "a task of the run",
    "slot": "a place in a batch that holds rows of one task; which task is data",
    "vector_slot": "a slot whose task shows state vectors; these come first",
    "image_slot": "a slot whose task shows pictures; these come next",
    "text_slot": "a slot whose task shows text; these come last",
    "row": "an environment, or a sampled window, within a slot",
    "env": "an environment of one task",
    "batch": "an update of several that are compiled into one call",
    # time
    "time": "decisions, in order",
    "context": "past decisions the agent looks back on when it plans",
    "transition": "decisions of a window and of the look-ahead behind it",
    "moment": "observations around these transitions: one more",
    "token": "tokens, in order: observation, action, observation, …",
    "asking": "those tokens of which the features are wanted",
    "window": "places for past tokens in a cache, a ring",
    "segment": "rows of a replay that are recycled together",
    # what a row holds
    "size": "entries of a state vector",
    "height": "rows of a picture",
    "width": "columns of a picture",
    "channel": "colours of a picture, or feature maps",
    "content": "what a library holds of a text: its embedding, or its tokens",
    "number": "the places of a page's texts in the library: its own, then those of its actions",
    "action": "entries of one action",
    "candidate": "the actions a search chooses among",
    "node": "the nodes of the trees of all rows",
    "lane": "simulations of one row, or of all rows, that are made at once",
    "round": "rounds of a search, in each of which an action is tried at most once",
    "choice": "the actions of a discrete task, or those that a page lists",
    "bin": "atoms of a categorical value or reward",
    # layers
    "in": "inputs of a layer",
    "out": "outputs of a layer",
    "rank": "inner width of an adapter",
    "embed": "entries of a token",
    "hidden": "entries between two layers",
    "height2": "rows of a picture after a convolution",
    "width2": "columns of a picture after a convolution",
    "head": "attention heads",
    "key": "entries of one head's query, key or value, or of a listed action's",
    "layer": "transformer blocks",
    "expert": "routed experts",
    "pick": "experts that one token is sent to",
    "pair": "tokens, once for each expert that they are sent to",
    "bucket": "places for the tokens of one expert, as many for each",
    "laid": "places of tokens sorted by expert, in whole tiles",
    "lined": "places of tokens sorted by expert, and some empty ones",
    "vocabulary": "sets of discrete actions that mean the same in several tasks",
    "patch": "patches of a picture, and the class token",
    # what a text holds
    "text": "texts, by their numbers in the run's book",
    "piece": "pieces of the words of a text, in order",
    "lexicon": "pieces of words that a text encoder knows",
    "place": "places that a piece can have in a text",
    "axes": "any leading axes",
}
