# What `curate.__getattr__` finds, for type checkers and editors. It is read and never run.
from cards.card.command import card as card
from cards.push.command import push as push
from cards.report.command import report as report
from curate.run.run import Run as Run
from curate.tagged.filter import filter as filter
from curate.tagged.order import order as order
from curate.version import __version__ as __version__
from probes.doctor.command import doctor as doctor
from probes.merge_command import merge as merge
from probes.tag_command import tag as tag
from recipes.augment.command import augment as augment
from recipes.calibrate.command import calibrate as calibrate
from recipes.compare.command import compare as compare
from recipes.confirm.command import confirm as confirm
from recipes.forecast.command import forecast as forecast
from recipes.judge.command import judge as judge
from recipes.validate.command import validate as validate
