"""How people ask: patterns of clauses per tool, data alone.

A pattern is text with alternatives in `[a|b|]` (not nested) and slots: `{P}` a file, `{D}` a folder, `{X}` a text,
`{A}` and `{B}` what is replaced by what, `{C}` a command, `{G}` a file or a folder. `~` before it marks what is no
order, so that no "please" or "can you" goes before it; `'` marks that its text must stand in quotes to be understood.
In `AFTER` are clauses that mean the file named before by a word like "it".
"""

from __future__ import annotations

from typing import Final

__all__ = ["AFTER", "CLAUSES", "CONNECTORS", "ENDINGS", "FORE", "HIND", "OFF", "POLITE"]

_FILE = "[|the file |file |the text file |my file ]"
_NEW = (
    "[|the file |a file |a file called |a file named |a new file |a new file called |a new file named |file |"
    "a text file ]"
)
_DIR = "[|the folder |the directory |folder |directory ]"
_RUN = "[run|execute|launch|start|do|invoke|perform|fire off|issue|try|process|carry out|kick off]"
_SHOW = (
    "[read|show|show me|print|display|view|get|give me|tell me|output|fetch|present|reveal|let me see|see|dump|check]"
)
_SWAP = "[replace|swap|substitute|exchange|overwrite]"
_TURN = "[change|turn|rename|convert|update|modify|edit|alter|switch|correct|rewrite|fix|transform]"
_WANT = "[I want|I need|I'd like|I would like|we need]"
_FIND = "[search for|look for|find|grep for|grep|hunt for|seek|locate|scan for|check for|search|track down|look up]"
_ALL = (
    "[all files|the files|everything|this folder|the project|the current folder|every file|my files|the code|all of it]"
)
_PUT = "[write|put|save|store|place|insert|record|enter|type|jot down|note down|add|drop|set down|log|note|keep]"

CLAUSES: Final[dict[str, tuple[str, ...]]] = {
    "read_file": (
        f"[read|open|show|show me|print|display|cat|view|load|fetch|get|give me|present|output|dump|see|read out|"
        f"let me see|let me read|pull up|bring up|look at|look into|check|inspect|examine|type out|review|go "
        f"through|peek at|"
        f"peek into] {_FILE}{{P}}",
        f"{_SHOW} [the contents of|the content of|the text of|the text in|what is in|what's in|the whole of|"
        "everything in|all of|the lines of|the body of|whatever is in|all the text in|the full text of|what is "
        "inside|"
        "what's inside|the data in|what is written in|the complete|the whole content of|the words in|the text "
        "inside] "
        f"{_FILE}{{P}}",
        "~[what is|what's] [in|inside|written in|stored in|the content of|the text of|saved in|inside of|kept in] "
        f"{_FILE}{{P}}?",
        f"~what does {_FILE}{{P}} [contain|say|hold|have in it|look like|have inside|include|read|tell]?",
        f"~[I want to see|I need to see|I would like to see|I'd like to read|I want to read|I need|I'd like to see|"
        f"I have to read|I wish to see] [|the contents of |what is in |the text of |all of ]{_FILE}{{P}}",
        "~{P}: [read it|show it|what's in it?|print it|open it|contents please|display it|what does it say?|show me]",
        f"[open|take|find|get|load] {_FILE}{{P}} and [read it|show it|show me what it says|print it|"
        "tell me what is in it|display it|tell me what it says|let me see it|read it to me|give me its text]",
        f"[have|take] a [look|peek|quick look] [at|in|inside|into] {_FILE}{{P}}",
        "~[what|which] [text|words|lines|data|content] [is in|are in|is inside|does it say in|can be found in] {P}?",
        f"[read|show|print|display] me {_FILE}{{P}}",
        "[read|show|display|print|give me|get] {P}'s [content|contents|text]",
        "~[contents|content|text] of {P}",
    ),
    "write_file": (
        f"{_PUT} {{X}} [to|into|in|inside] {_NEW}{{P}}",
        f"[create|make|write|start|generate|produce|set up|add|save|prepare|build|begin] {_NEW}{{P}} [with|"
        f"containing|"
        "that contains|with the text|with the content|with content|that says|saying|holding|that holds|with the "
        "words|"
        "whose content is|which reads|that reads|with this text:|with this content:|and its content is|which "
        "says] {X}",
        f"[create|make|start|open|add|set up|take] {_NEW}{{P}} and [write|put|store|save|place|enter] {{X}} [in "
        f"it|into it|"
        "inside|there|inside it|to it|in there]",
        f"[in|into|to] {_NEW}{{P}}[|,] [write|put|save|store|add|place|record|enter] {{X}}",
        f"[fill|populate|overwrite|create|write|supply] {_FILE}{{P}} with [|the text |the words |the line ]{{X}}",
        f"~{_FILE}{{P}} [should contain|should say|should read|should hold|must contain|must say|shall contain|"
        f"has to say|"
        "needs to contain|should have the text|is to contain|ought to say] {X}",
        f"[make|let|have] {_FILE}{{P}} [say|contain|hold|read|have the text] {{X}}",
        f"~{_WANT} [a file|a new file|a file called|a file named|a text file|the file] {{P}} [with|containing|"
        f"that says|"
        "that contains|with the text|saying|which holds|to contain|to say] {X}",
        "'~{X} [goes|should go|must go|belongs|has to go|should be written|should be saved|should be stored|"
        "must be put] "
        f"[into|in|inside] {_NEW}{{P}}",
        f"{_PUT} the [text|words|line|string|content|sentence|message|note|phrase|following text] {{X}} [to|in|into] "
        f"{_NEW}{{P}}",
        "[write|save|store|put] [to|into|in] {P}: {X}",
        "[write|save|create|make] {P}: {X}",
        "[save|write|store|create] {P} [as|having] [the text|content|text] {X}",
        "~{P} [with|containing] [the text|the content|content] {X}",
    ),
    "edit": (
        f"{_SWAP} {{A}} [with|by] {{B}} [in|inside|within|in the text of] {_FILE}{{P}}",
        f"{_TURN} {{A}} [to|into] {{B}} [in|inside|within|in the text of] {_FILE}{{P}}",
        f"[in|inside|within|in the file] {{P}}[|,] {_SWAP} {{A}} [with|by] {{B}}",
        f"[in|inside|within|in the file] {{P}}[|,] {_TURN} {{A}} [to|into] {{B}}",
        f"[edit|open|update|modify|change|take|fix] {_FILE}{{P}}[:|,| and] [replace|swap|substitute] {{A}} "
        f"[with|by] {{B}}",
        f"[edit|open|update|modify|change|take|fix] {_FILE}{{P}}[:|,| and] [change|turn|convert|rename|make] "
        f"{{A}} [to|into] {{B}}",
        f"[edit|update|modify|change] {_FILE}{{P}}[: | by changing |, turning | and change ]{{A}} [->|=>|to|"
        f"into] {{B}}",
        f"[edit|update|modify|change|fix] {_FILE}{{P}} so that {{A}} [becomes|is replaced with|is changed to|"
        f"turns into|"
        "is now|is replaced by|reads|says] {B}",
        "'~{A} [should be|must be|should become|must become|has to be|needs to be|has to become|shall be|ought "
        "to be] "
        f"[|replaced by |changed to |replaced with ]{{B}} in {_FILE}{{P}}",
        "~in {P}[|,] {A} [should be|must be|should become|must become|should read|becomes|has to be|needs to be|"
        "is now] "
        "{B}",
        f"~{_WANT} {{A}} [replaced with|changed to|turned into|swapped for|to become|to be|replaced by|to read] "
        f"{{B}} in "
        f"{_FILE}{{P}}",
        "[put|write|use|have|insert] {B} [instead of|in place of|where it says|rather than] {A} in "
        f"{_FILE}{{P}}",
        f"[find|look for|take|locate] {{A}} in {_FILE}{{P}} and [replace it with|change it to|make it|turn it "
        f"into|swap it for|"
        "put in its place|replace it by] {B}",
        "[wherever|where] {P} [has|says|contains] {A}[|,] [put|write|make it|use] {B}",
        "~{P}: {A} [->|=>|becomes|should be|must be|is now] {B}",
    ),
    "list_files": (
        "[list|show|show me|display|print|give me|get|see|let me see|enumerate] [files|the files|all files|my files|"
        "all the files|the files here|the files in this folder|the current folder|this folder|the folder|the "
        "directory|"
        "the current directory|the working directory|this directory|what files there are|everything here|what "
        "is here|"
        "the contents of this folder|a list of files|a file listing|the file list|the names of the files|folder "
        "contents|"
        "the contents of the current directory|what files I have|a listing|the names of all files|every file]",
        "~[what|which] files [are here|are there|do I have|do we have|exist|are in this folder|exist here|can "
        "you see|"
        "are in the current folder|are around|are available|are in the current directory|live here|are present]?",
        "~what [is|do we have|do I have|can be found|lies|sits] [in this folder|in the current directory|in the "
        "folder|here|"
        "in the current folder|in this directory]?",
        "[ls|dir]",
        "[list|show|show me|display|print|give me|get|see|enumerate|let me see] [the files in|files in|all files in|"
        "everything in|what is in|all the files in|the entries of|the listing of|what files are in|"
        "the files under|all files under|the files of|the file names in|a listing of|the names of the files in|"
        f"every file in|a list of the files in|which files are in] {_DIR}{{D}}",
        "[list|show|show me|display|print|give me|get|see] the [folder|directory|contents of the folder|"
        "contents of the directory|"
        "content of the folder|files in the folder] {D}",
        "[list|show|show me|display|print] the {D} [folder|directory]",
        f"~[what|which] files [are|are there|exist|do we have|can be found|lie|sit] [in|inside|under] {_DIR}{{D}}?",
        "~[what is|what's] [in|inside|under] the [folder|directory] {D}?",
        "~[what is|what's] in the {D} [folder|directory]?",
        "[list|ls|dir] {D}",
        "[look|have a look|take a look|peek|glance] [into|inside|around in|in|at] the [folder|directory] {D}",
        "~what does the [folder|directory] {D} [contain|hold|have in it|have inside|include]?",
        f"~{_WANT} [to see the files in|a list of the files in|a listing of|the files in|to see the folder|to "
        f"list] {{D}}",
        "~{D}: [list it|what files are there?|show the files|list the files]",
    ),
    "grep": (
        f"{_FIND} {{X}} [in|inside|within|under|through] [|the file |file |the folder |the directory ]{{G}}",
        f"{_FIND} {{X}}[ here| in all files| everywhere| in the files| in this folder| in the project| in every file|"
        " across all files| in the code| in the current folder| in my files| in the current directory| in the "
        "whole project|"
        " anywhere| in any file]",
        "[search for|look for|grep for|grep|search] {X}",
        "[search|grep|scan|comb|look through|go through|look in|search in|search through|comb through|sift "
        "through|check] "
        "[|the file |the folder |the directory ]{G} for [|the word |the text |the string ]{X}",
        f"[search|grep|scan|look through|go through|search through|comb through|check] {_ALL} for {{X}}",
        "~[where is|in which file is|in what file is|in which files is|where do we use|where do I use|where can "
        "I find|"
        "where do we have|where does it say|where did I write|where did we put] {X}?",
        "~which [files contain|file contains|files mention|file mentions|files have|file has|files use|files include|"
        "file includes|files talk about] {X}?",
        "~which [files|file] in {D} [contain|contains|mention|mentions|have|use|include|has] {X}?",
        "~does {G} [contain|mention|include|have|use|hold] [|the word |the text |the string ]{X}?",
        "'~is {X} [in|mentioned in|used in|written in|part of|found in|anywhere in] {G}?",
        "[find|search for|look for|get|locate] [lines with|all lines with|every line with|occurrences of|all "
        "occurrences of|"
        "matches for|all matches of|the word|the text|the string|mentions of|references to|uses of|the phrase] "
        "{X} in "
        "[|the file |the folder ]{G}",
        "[find|list|show me|show|give me|get] [all files|the files|files|every file] [containing|that contain|with|"
        "that mention|mentioning|which contain|using] {X}",
        "[find|show me|list|get|give me] [the lines|all lines|every line|lines] [with|containing|that contain|"
        "that mention|matching] {X} in {G}",
        "[in|inside] {G}[|,] [find|search for|look for|grep for] {X}",
    ),
    "shell": (
        f"{_RUN} [|the command |the shell command |this command: |this: |the following command: |command |the "
        f"program ]"
        "{C}",
        f"'{_RUN} {{C}} [in the shell|in a shell|in the terminal|on the command line|in bash|for me|now|as a command|"
        "in a terminal|with the shell]",
        "[use|open|start|take] [the shell|a shell|the terminal|bash|the command line|a terminal] [to run|and run|for|"
        "to execute|and execute|and type|and enter|to do] {C}",
        "[in the shell|in the terminal|on the command line|with the shell|in bash|in a terminal|in a shell][|,|:] "
        "[run|execute|do|type|enter|start] {C}",
        "~what [does|is printed by|is the output of|comes out of|happens with] {C}[?|]",
        "~[shell|cmd|command|bash|terminal|run]: {C}",
        "~$ {C}",
        "[show|give|get|tell] me [the output of|the result of|what comes out of|what you get from] {C}",
        f"~{_WANT} [you to run|to run|the output of|to execute|you to execute|the result of] {{C}}",
    ),
    "utc": (
        "~what [time is it|is the time|time is it now|is the current time|is the UTC time|is the date|is "
        "today's date|"
        "day is it|is the time now|time do we have|time is it in UTC|time is it right now|is the current UTC time|"
        "is the date today|is the time in UTC|day is today|is the exact time|hour is it]?",
        "[tell me|give me|show me|say|print|get|check|fetch|display|report|look up|find out|state|show] [the time|"
        "the current time|the time now|the UTC time|the time in UTC|the date|the date and time|today's date|"
        "the current date|the clock|what time it is|what day it is|the current UTC time|the hour|the exact time|"
        "what the time is|the time of day|the time right now|the time and date]",
        "~what's [the time|the current time|the date|the time now|today's date|the UTC time|the time in UTC]?",
        "~[do you know|can you see] [the time|what time it is|the date|the current time|what day it is]?",
        "~how late is it[| now| in UTC]?",
        "~[time|utc|date|current time|time now|the time|utc time|today's date|the date]",
        "~which [day|date|day of the month] is [it|today]?",
        f"~{_WANT} [the time|to know the time|the current time|the date|to know what time it is|the UTC time|to "
        f"see the clock]",
        "~[I want|I need|I'd like] to know [the time|what time it is|the date|today's date|the current time]",
    ),
    "echo": (
        "[echo|say|repeat|return|send back|parrot|reply with|respond with|answer with|write back|give back|"
        "utter|speak|"
        "reply|respond|answer|mirror|bounce] "
        "[|the text |the word |the words |back |this: |the phrase |the sentence |exactly |the following: ]{X}",
        "'[echo|repeat|say|return|send|give|write|read|parrot|bounce|play|speak|mirror] {X} [back|back to me|to "
        "me|once|again|"
        "for me|aloud|out loud]",
        "[use|call|run|try] [echo|the echo tool|the tool echo] [with|on|for] [|the text |the word ]{X}",
        f"~{_WANT} [you to say|you to repeat|to hear|you to echo|you to answer|you to send back] {{X}}",
        "'[print|output|display|show|write|type] [the text |the word |the words |the phrase |the message |the "
        "string ]{X}",
        "~[echo|say|repeat|repeat after me]: {X}",
    ),
}  # fmt: skip

AFTER: Final[dict[str, tuple[str, ...]]] = {
    "read_file": (
        "[read|show|show me|print|display|open|view|check|cat|output|verify|inspect|load|re-read|look at|"
        "present|let me see|"
        "fetch] it[| again| to me| afterwards| for me]",
        "[read|print|give|show|write] it back[| to me]",
        "[read|show|show me|print|display|check|view|tell me|output|give me|let me see|verify|look at] [the file|"
        "its content|its contents|the result|what it says|what is in it|what it contains|the contents|the file again|"
        "the new file|the text|what you wrote|the new content|what is inside|the content|its text|what it looks like|"
        "what it says now|the whole file|that file]",
        "[read|open|check|show|print] that[| file| back]",
        "[verify|check|make sure|confirm] [by reading it|by reading it back|by showing it|by printing it]",
        "tell me [what it contains|what it says|what is inside|what the file says|what is in the file]",
    ),
    "list_files": (
        "[list|show|show me|display|print|see|give me|check] [the folder|the files|all files|the directory|files|"
        "the current folder|what files there are|the files here|the current directory|this folder|a listing|the "
        "file list]",
        "tell me [what files there are|which files are here|what is in the folder]",
    ),
    "edit": (
        "[replace|swap|substitute] {A} [with|by] {B} [in it|there|in that file|in the same file|in the file|in "
        "this file]",
        "[change|turn|convert|rename] {A} [to|into] {B} [in it|there|in that file|in the same file|in the file|"
        "inside it]",
        "in [it|that file|the file][|,] [replace|swap] {A} [with|by] {B}",
    ),
    "grep": (
        "[search|grep|scan|check] [it|that file|the file|the same file] for {X}",
        "[look for|find|search for|grep for] {X} [in it|there|in that file|in the file|inside it|in the same file]",
    ),
}

CONNECTORS: Final = (
    ", then ", " and then ", " and ", " and ", ". Then ", ", and then ", "; ", "; then ", ", after that ",
    ". After that, ", " and afterwards ", ". Next, ", ", next ", ", and ", ". Now ", " then ", ". ", ", ",
    " and after that ", ", afterwards ", ". And then ", ". Then please ", " and also ", ". Finally, ",
    ", and finally ", ". Once done, ", ". Also ",
)  # fmt: skip
POLITE: Final = (
    "please ", "can you ", "could you ", "could you please ", "would you ", "I want you to ", "I need you to ",
    "kindly ", "just ", "go ahead and ", "try to ", "you should ", "I'd like you to ", "please just ",
    "can you please ", "now ", "will you ", "would you please ", "your task: ", "your job is to ", "task: ",
    "we need to ", "let us ", "let's ", "you must ", "first ", "quickly ", "help me and ", "be so kind and ",
    "I would like you to ", "you have to ", "do this: ",
)  # fmt: skip
FORE: Final = (
    "hey, ", "hi, ", "ok, ", "so ", "hello, ", "okay, ", "well, ", "ok now ", "alright, ", "hey ", "hi! ", "good, ",
    "next: ", "hello! ", "and now ", "dear assistant, ", "listen: ", "right, ", "sorry, ", "thanks. ",
)  # fmt: skip
HIND: Final = (
    " please", " for me", " now", ", thanks", ", please", ", thank you", " thanks", " right now", ", ok",
    " quickly",
)  # fmt: skip
ENDINGS: Final = (
    "[and|,|, and|, then|and then] [end|finish|close|conclude|stop|complete|wrap up|end your answer|finish your "
    "answer] "
    "with [|the word |the line |just ]{M}",
    "[and|, and|, then|and then] [say|reply|answer|write|print|add|state|output] [|the word |just ]{M}[| at the "
    "end| when done|"
    " when finished| when you are done| as the last line| last]",
    "[.|. Then|. Finally,] [end|finish|close|conclude|reply|answer|say] [with|] {M}[| at the end| when you are done]",
    "[. When done,|. When finished,|. Once finished,|. When you are done,|, and when done] [say|write|reply "
    "with|answer with|"
    "print|add] {M}",
    "[. The last line should be|. The last word must be|. Your last word should be|. The answer must end with|. "
    "End on] {M}",
)

OFF: Final = (
    "~[who|what] [is|was|are|were] [|the |a |your ][first |best |biggest |famous |new |old |] {T}[| in history| "
    "of all time| today]?",
    "~[why|how|when|where] [is|are|was|does|do|did|can|will|would|should] [|the |a |my |your |people |we ][{T}|"
    "{T} {T}] [work|"
    "grow|end|happen|start|matter|exist|change|look so {T}|become {T}|cost so much|last|feel]?",
    "[write|compose|draft|make up|create|tell me|invent|give me] [a poem|a story|a joke|an essay|a song|a "
    "letter|a speech|a riddle|"
    "a haiku|a summary|a plan|a recipe|a fairy tale|a novel|a blog post|an email] [about|on|for|with] [|the |my "
    "|a ]{T}[| and {T}]",
    "[explain|describe|define|teach me|discuss|summarize|summarise|analyze|compare|tell me about|tell me "
    "something about|"
    "tell me more about] [|the |a |how ][{T}|{T} and {T}|the {T} of {T}|{T} to a child]",
    "[translate|convert|spell|pronounce] [{T}|the word {T}|this: {T} {T}|my text|the sentence about {T}|hello] "
    "[to|into|in] [French|"
    "German|Spanish|Latin|Chinese|Italian|Russian|Japanese|English|Greek]",
    "~[what is|what's|how much is|calculate|compute|solve] {N} [+|-|*|/|plus|minus|times|divided by] {N}[|?]",
    "[recommend|suggest|pick|name|choose|buy|order|book|get me] [|a |some |a good |the best |three ][{T}|{T} for {T}|"
    "restaurant|movie|book|hotel|flight|ticket|gift|game|song]",
    "~I [am|feel|was|think I am] [sad|happy|tired|bored|angry|lonely|hungry|lost|afraid|confused|sick|excited]"
    "[| today| about {T}| because of {T}]",
    "~do you [like|love|know|want|have|prefer|dream of|believe in|remember|speak|eat|understand] [|a |the |my "
    "][{T}|{T} or {T}]?",
    "~[can|could] you [sing|dance|drive|cook|fly|play chess|help me|feel pain|think|learn|code|draw|swim|see me|"
    "hear me|"
    "play {T} with me|talk about {T}|make {T}|love {T}|fix my {T}|teach me {T}]?",
    "~[are|were] you [a human|real|alive|a robot|sure|happy|smart|an AI|conscious|there|married|a {T}|ChatGPT|"
    "free|better than {T}]?",
    "~[who|what] [are you|made you|can you do|do you know|is your name|is your job|trained you|built you|do you want]?",
    "[play|watch|call|send|turn on|turn off|order|paint|remind me of|remind me to {T}|wake|invite|plan|organize|"
    "sell|fix|cook|design] "
    "[|the |my |a |some ]{T}[| tomorrow| tonight| please| at {N}| for my {T}]",
    "~[the|my|a|this|that|our] {T} [is|was|seems|looks|will be|has been] [{T}|very {T}|not {T}|broken|great|"
    "boring|too {T}|over|wrong]",
    "[refactor|optimize|debug|review|improve|rewrite|document|test|implement|port|deploy|design] [|the |my |a |"
    "this |our ]{T}[| code|"
    " module| function| class| service| in {T}| for {T}| app]",
    "~[should I|shall we|may I|must I|can I|is it ok to] [eat|buy|sell|learn|visit|see|use|like|marry|call] [|a "
    "|the |my ]{T}[| or {T}]?",
    "~how [many|much|far|old|big|long|tall|heavy|fast|deep|hot] [is|are|was|{T} are in|{T} does] [|a |the |my ]{T}?",
    "~[give me advice|what do you think|any ideas|an opinion|some help|tips] [on|about|for] [|my |the |a ]{T}[|"
    "?| please]",
    "~[la|le|der|die|das|el|un|une|ein|eine|il|los] {T} [est|ist|es|sont|sind|y|und|et|de|von] [{T}|{T} {T}|bon|"
    "gut|bien]",
    "~[|the |a |my ]{T}[| {T}][|?|!|...]",
    "~[lol|haha|hmm|ok|yes|no|why|what|cool|nice|wow|sure|maybe|help|really|thanks|thank you|never mind|great|stop]"
    "[|!|?|.|...| {T}]",
    "[imagine|pretend|assume|suppose] [you are|I am|we are|there is] [|a |the ]{T}[| and {T}| in the {T}]",
    "~[is|are] [|the |a |my ]{T} [{T}|better than {T}|good for {T}|bigger than a {T}|real|expensive|dangerous|"
    "healthy]?",
    "~what [is|happens if|would happen to|about|do you think of|color is|kind of] [|a |the |my ]{T}[| {T}| and {T}]?",
    "[sing|dance|think|sleep|wait|relax|laugh|smile|guess|dream|work|talk][| to me| about {T}| with {T}| for "
    "{N} hours]",
)
