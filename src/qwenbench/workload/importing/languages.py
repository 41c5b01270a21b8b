"""Language names as multilingual datasets write them, and their BCP 47 codes."""

from __future__ import annotations

_CODES = """
amharic am; arabic ar; armenian hy; azerbaijani az; basque eu; belarusian be; bemba bem; bengali bn; bulgarian bg;
burmese my; catalan ca; cebuano ceb; chinese zh; croatian hr; czech cs; danish da; dutch nl; english en; esperanto eo;
estonian et; filipino fil; finnish fi; french fr; galician gl; georgian ka; german de; greek el; gujarati gu;
haitian ht; hausa ha; hebrew he; hindi hi; hungarian hu; icelandic is; igbo ig; indonesian id; irish ga; italian it;
japanese ja; javanese jv; kannada kn; kazakh kk; khmer km; korean ko; kurdish ku; kyrgyz ky; lao lo; latvian lv;
lithuanian lt; macedonian mk; malagasy mg; malay ms; malayalam ml; maltese mt; maori mi; marathi mr; mongolian mn;
ndebele nd; nepali ne; norwegian no; nyanja ny; panjabi pa; pashto ps; persian fa; polish pl; portuguese pt;
punjabi pa; romanian ro; russian ru; samoan sm; scottish gd; serbian sr; shona sn; sindhi sd; sinhala si; slovak sk;
slovenian sl; somali so; sotho st; spanish es; sundanese su; swahili sw; swedish sv; tajik tg; tamil ta; telugu te;
thai th; turkish tr; ukrainian uk; urdu ur; uzbek uz; vietnamese vi; welsh cy; wolof wo; xhosa xh; yiddish yi;
yoruba yo; zulu zu
"""
_BY_NAME = dict(entry.split() for entry in _CODES.replace("\n", " ").split(";"))

_THREE_LETTERS = """
amh am; arb ar; ara ar; ben bn; ces cs; cmn zh; dan da; deu de; ell el; eng en; est et; eus eu; fas fa; pes fa; fil fil;
fin fi; fra fr; guj gu; hau ha; heb he; hin hi; hun hu; ibo ig; ind id; ita it; jpn ja; kan kn; kor ko; lit lt; lav lv;
mal ml; mar mr; mlg mg; plt mg; mya my; nld nl; nep ne; npi ne; nor no; nya ny; pan pa; pbt ps; pol pl; por pt; ron ro;
rus ru; sin si; slk sk; slv sl; sna sn; snd sd; som so; spa es; sqi sq; srp sr; swe sv; swh sw; tam ta; tel te; tgl fil;
tha th; tur tr; ukr uk; urd ur; uzn uz; vie vi; wol wo; xho xh; yor yo; yue yue; zho zh; zul zu; zsm ms
"""
_BY_CODE = dict(entry.split() for entry in _THREE_LETTERS.replace("\n", " ").split(";"))

UNKNOWN = "und"
"""BCP 47's code for a language that is not determined."""


def language_code(name: str) -> str:
    """The BCP 47 code of a language given by name (`Standard Arabic`), in ISO 639-3 or as a code; `und` if unknown."""
    words = name.strip().lower().replace("_", "-")
    if words in _BY_CODE:
        return _BY_CODE[words]
    first, _, rest = words.partition("-")
    if first in _BY_NAME.values() and len(rest) <= 4:
        return first
    if "cantonese" in words or "yue" in words.split():
        return "yue"
    return next((_BY_NAME[word] for word in words.replace("(", " ").split() if word in _BY_NAME), UNKNOWN)
