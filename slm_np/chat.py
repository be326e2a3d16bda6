"""Talk with a trained model in a terminal or through a pipe: `python -m slm_np.chat --model MODEL`."""

import sys

from slm_np.cli import flags
from slm_np.cli.conversation import Conversation, list_commands, say, talk_in_terminal, talk_through_pipe
from slm_np.cli.loading import described
from slm_np.cli.text_output import Screen, add_writing, load_writer
from slm_np.errors import command


def parser():
    p = flags.Parser(
        prog="slm-np chat",
        description="Talk with a trained model: in a terminal, or through a pipe with one message per line. A run that "
        "was finetuned on conversations answers; any other continues the text. The run has its own defaults of the "
        "sampling flags.",
        epilog="commands:\n" + list_commands(),
    )
    group = p.add_argument_group("text")
    group.add_argument("--system", default="", metavar="TEXT", help="system message, before the conversation")
    add_writing(p, group)
    return p


@command(prints_result=True)
def main(argv=None):
    """Exit status: 0 when the user leaves, 2 for bad input, in a pipe also if a message cannot be answered."""
    args = parser().parse(argv)
    run, sampling, max_tokens, stops = load_writer(args)
    chat = Conversation(run, sampling, max_tokens, stops, Screen(args.show_confidence), args.system)
    say(described(run) + "; /help lists the commands" * sys.stdin.isatty())
    if chat.template is None:
        say("this model has no chat template: the model continues each message, and does not see the ones before")
    if sys.stdin.isatty():
        talk_in_terminal(chat)
    else:
        talk_through_pipe(chat, sys.stdin.buffer)


if __name__ == "__main__":
    main()
