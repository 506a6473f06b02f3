"""A small world of support tickets: who writes, about what, in which words, and who finally solves it.

People describe one trouble in the words of another, leave the telling word out, and mistype it. The text therefore
says most but not all; a customer who writes again mostly has the old trouble, so history says some of the rest.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..params import Sample

DEPARTMENTS = np.array(["billing", "delivery", "returns", "technical", "account", "security", "sales", "contracts"])
SHARES = np.array([0.20, 0.17, 0.12, 0.20, 0.12, 0.05, 0.08, 0.06])
NEIGHBOUR = np.array([7, 2, 1, 4, 5, 4, 7, 0])  # the department that each is mistaken for
# Words of each language: one line per department, then links, words about anything, greetings, farewells. Some words stand in two lines.
ENGLISH = """invoice charged twice bill payment refund card amount fee overcharged debit receipt price vat wrong money
parcel courier late tracking shipped package address arrived driver depot missing waiting order doorstep postponed customs
return broken damaged replacement exchange refund wrong label box scratched defective parcel order size unused cracked
error crash slow connection router update reboot screen signal offline install freezes app settings outage cable
login password username email profile locked reset verify settings name address sign-in delete merge app phone
hacked suspicious fraud stolen phishing password unknown login unauthorised scam blocked card leaked verify device virus
offer discount upgrade plan price buy quote trial business demo available compare stock bundle order feature
cancel contract renewal terminate notice extension period plan fee clause moving transfer signed conditions invoice downgrade
i_have_a since_yesterday_the about_my please_check_the there_is_still with_the and_the already_had i_do_not_understand_the what_about and_again_the
problem question trouble thing matter family week message colleague service house friend
hello, hi, good_morning, dear_team, hey, hi_there.
thanks. thank_you! regards please_reply_soon. this_is_urgent! it_is_still_not_solved."""
GERMAN = """rechnung abgebucht überweisung betrag gebühr doppelt zahlung mahnung
paket lieferung verspätet zusteller sendung adresse zollgebühr bestellung
rücksendung beschädigt umtausch kaputt erstattung größe paket bestellung
störung fehler langsam verbindung gerät absturz aktualisierung einstellungen
anmeldung passwort benutzername gesperrt zurücksetzen konto adresse einstellungen
gehackt verdächtig betrug gestohlen passwort unbefugt konto gerät
angebot rabatt tarif verfügbar kaufen preis geschäftskunden bestellung
kündigung vertrag verlängerung laufzeit umzug tarif rechnung gebühr
ich_habe_ein seit_gestern wegen_meiner können_sie_bitte_prüfen: es_gibt_immer_noch mit_der und_die schon_wieder ich_verstehe_nicht: für_meine
problem frage ärger sache familie woche nachricht kollege
hallo, guten_tag, grüß_gott, liebes_team,
danke. mit_freundlichen_grüßen bitte_schnell! es_ist_noch_nicht_gelöst."""
FRENCH = """facture débité paiement montant prélèvement remboursé frais reçu
colis livraison retard livreur expédié adresse douane commande
retour cassé abîmé échange remboursé défectueux colis commande
panne erreur lent connexion écran réseau mise_à_jour paramètres
identifiant mot_de_passe bloqué réinitialiser profil compte adresse paramètres
piraté suspect fraude volé hameçonnage mot_de_passe compte bloqué
offre remise forfait disponible acheter devis prix commande
résilier contrat préavis durée déménagement forfait facture frais
j'ai_un depuis_hier pour_mon pouvez-vous_vérifier: il_y_a_toujours avec_la et_le déjà_eu je_ne_comprends_pas: à_propos_de
problème question souci chose famille semaine message collègue
bonjour, salut, madame_monsieur, chère_équipe,
merci. cordialement à_bientôt ce_n'est_toujours_pas_réglé."""
LANGUAGES = np.array(["en", "de", "fr"])
LINK, ANYTHING, GREETING, FAREWELL = 8, 9, 10, 11  # lines after the departments'
CHANNELS = np.array(["email", "chat", "form", "phone"])
PRODUCTS = np.array(["broadband", "mobile", "television", "smart_home"])
PRODUCT_MIX = np.array(  # percent, one row per department
    [[40, 35, 20, 5], [10, 30, 10, 50], [5, 35, 10, 50], [50, 15, 20, 15], [25, 35, 25, 15], [20, 60, 10, 10], [25, 35, 25, 15], [50, 30, 18, 2]]
)
PLANS = np.array(["free", "basic", "family", "business"])
PRIORITIES = np.array(["low", "normal", "high"])
URGENT = np.array([0.2, 0.2, 0.1, 0.45, 0.3, 0.75, 0.05, 0.1])  # share of high priority
MAX_PIECES, TYPOS = 20, 0.05
BATCH = 50_000  # rows in memory at a time
TICKETS_PER_CUSTOMER = 12
DAY = 86_400.0


class Words(NamedTuple):
    """All words in one array, mistyped copies behind; where each language's lines start, and their sizes."""

    words: pa.Array
    first: np.ndarray  # languages x lines
    size: np.ndarray
    correct: int


class Customers(NamedTuple):
    """What is true of each customer; the last trouble changes with time."""

    usual: np.ndarray  # department of the trouble they are prone to
    language: np.ndarray
    plan: np.ndarray
    trouble: np.ndarray
    troubled_at: np.ndarray


def simulate(sample: Sample) -> Iterator[pa.Table]:
    """Tickets in time order, in tables of at most about BATCH rows; the same sample gives the same bytes."""
    rng = np.random.default_rng(sample.seed)
    words, customers = _learn_words(rng), _meet_customers(rng, max(50, sample.rows // TICKETS_PER_CUSTOMER))
    start, end = np.datetime64(sample.start, "us"), sample.days * DAY
    bounds = np.linspace(0, end, max(sample.days, sample.rows // BATCH) + 1)
    done = 0
    for low, high in pairwise(bounds):
        rows = round(sample.rows * high / end) - done
        done += rows
        moved = sample.drift if low >= sample.drift_day * DAY else "none"
        if rows:
            offset = np.sort(low + (high - low) * rng.beta(3, 2.5, rows))  # most write around noon
            yield _tickets(rng, words, customers, offset, moved, start, end)


def _learn_words(rng: np.random.Generator) -> Words:
    lines = [[w.replace("_", " ") for w in line.split()] for text in (ENGLISH, GERMAN, FRENCH) for line in text.split("\n")]
    size = np.array([len(line) for line in lines])
    words = [w for line in lines for w in line]
    mistyped = [w[:i] + w[i + 1 : i + 2] + w[i] + w[i + 2 :] for w in words for i in [int(rng.integers(0, len(w)))]]
    return Words(pa.array(words + mistyped), (np.cumsum(size) - size).reshape(3, -1), size.reshape(3, -1), len(words))


def _meet_customers(rng: np.random.Generator, size: int) -> Customers:
    usual, language = rng.choice(8, size, p=SHARES), rng.choice(3, size, p=[0.7, 0.18, 0.12])
    return Customers(usual, language, rng.choice(4, size, p=[0.25, 0.4, 0.2, 0.15]), np.zeros(size, int), np.full(size, -np.inf))


def _tickets(rng: np.random.Generator, words: Words, customers: Customers, offset: np.ndarray, moved: str,
             start: np.datetime64, end: float) -> pa.Table:  # fmt: skip
    """One stretch of time: a trouble, the words and fields it shows in, and the department that solved it."""
    rows = len(offset)
    who = (len(customers.usual) * rng.random(rows) ** 1.5).astype(int)  # some write more than others
    about = np.where(rng.random(rows) < 0.35, customers.usual[who], rng.choice(8, rows, p=SHARES))
    again = rng.random(rows) < 0.65 * np.exp((customers.troubled_at[who] - offset) / (20 * DAY))
    about = np.where(again, customers.trouble[who], about)
    customers.trouble[who], customers.troubled_at[who] = about, offset
    solver = np.where(rng.random(rows) < 0.05, NEIGHBOUR[about], about)
    language, chatty = customers.language[who], 0.25
    if moved == "covariate":  # other customers: a launch abroad, where people chat
        language, chatty = np.where(rng.random(rows) < 0.5, rng.integers(1, 3, rows), language), 0.55
    if moved == "concept":  # other departments: pairs of them trade their work, whatever the words
        handed = np.array([7, 2, 1, 3, 5, 4, 6, 0])
        solver = handed[solver]
    channel = np.where(rng.random(rows) < chatty, 1, rng.choice([0, 2, 3], rows, p=[0.5, 0.3, 0.2]))
    product = (rng.random(rows)[:, None] * 100 > PRODUCT_MIX[about].cumsum(axis=1)).sum(axis=1).clip(0, 3)
    priority = np.where(rng.random(rows) < URGENT[about], 2, rng.choice(2, rows, p=[0.3, 0.7]))
    solved = offset + rng.lognormal(0.2, 0.6, rows).clip(0.05, 4.9) * DAY
    known = solved <= end
    return pa.table({
        "ticket_id": pa.array([f"t{int(o):012d}{i:05d}" for i, o in enumerate(offset)]),
        "customer_id": pa.array([f"customer-{c:07d}" for c in who]),
        "opened_at": pa.array(start + (offset * 1e6).astype("timedelta64[us]")),
        "text": _write(rng, words, about, language, channel == 1, again & (rng.random(rows) < 0.3)),
        "channel": pa.array(CHANNELS[channel]),
        "product": pa.array(PRODUCTS[product], mask=rng.random(rows) < 0.06),
        "plan": pa.array(PLANS[customers.plan[who]]),
        "language": pa.array(LANGUAGES[language], mask=rng.random(rows) < 0.02),
        "priority": pa.array(PRIORITIES[priority], mask=rng.random(rows) < 0.15),
        "attachments": pa.array(rng.poisson(np.where(np.isin(about, [0, 2]), 0.9, 0.3)), mask=channel == 3),
        "department": pa.array(DEPARTMENTS[solver], mask=~known),
        "resolved_at": pa.array(start + (solved * 1e6).astype("timedelta64[us]"), mask=~known),
    })  # fmt: skip


def _write(rng: np.random.Generator, words: Words, about: np.ndarray, language: np.ndarray, short: np.ndarray,
           vague: np.ndarray) -> pa.Array:  # fmt: skip
    """A greeting, links and words in turn, a farewell; a vague ticket has no word of its own trouble."""
    rows = len(about)
    length = (np.where(short, 6, 8) + rng.poisson(np.where(short, 2, 4))).clip(0, MAX_PIECES)
    shape, place = (rows, MAX_PIECES), np.arange(MAX_PIECES)
    origin = rng.choice(4, shape, p=[0.62, 0.08, 0.05, 0.25])  # a word of the trouble, its neighbour, any, none
    origin[vague[:, None] & (origin == 0)] = 3
    line = np.select([origin == 0, origin == 1, origin == 2], [about[:, None], NEIGHBOUR[about][:, None], rng.integers(0, 8, shape)], ANYTHING)
    line[:, 1::2] = LINK
    line = np.where(place == 0, GREETING, np.where(place == length[:, None] - 1, FAREWELL, line))
    tongue = np.where((line < LINK) & (rng.random(shape) < 0.15), 0, language[:, None])  # English loan words
    index = words.first[tongue, line] + (words.size[tongue, line] * rng.random(shape)).astype(int)
    index += words.correct * (rng.random(shape) < TYPOS)
    kept = (place < length[:, None]) & ((place > 0) | (rng.random(shape) < 0.6)) & ((place < length[:, None] - 1) | (rng.random(shape) < 0.6))
    ends = np.concatenate([[0], kept.sum(axis=1).cumsum()]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), words.words.take(pa.array(index[kept]))), " ")
