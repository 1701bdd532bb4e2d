"""True and false statements for probes of truth: capitals of countries.

Problem: a probe of truth needs statements that differ in nothing but their truth. Mechanism: every
capital appears twice, once with its own country and once with another one, in the same sentence.

    task, groups = capital_statements(seed=0)

Limits: small models know few capitals; accuracy near chance says that about the model first.
"""

import random

from lrt_lens.reproduction._labelled_texts import Task

_CAPITALS = (
    "Afghanistan, Kabul; Albania, Tirana; Algeria, Algiers; Angola, Luanda; "
    "Argentina, Buenos Aires; Armenia, Yerevan; Australia, Canberra; Austria, Vienna; "
    "Azerbaijan, Baku; Bahrain, Manama; Bangladesh, Dhaka; Belarus, Minsk; Belgium, Brussels; "
    "Botswana, Gaborone; Brazil, Brasilia; Bulgaria, Sofia; Cambodia, Phnom Penh; "
    "Cameroon, Yaounde; Canada, Ottawa; Chad, N'Djamena; Chile, Santiago; China, Beijing; "
    "Colombia, Bogota; Croatia, Zagreb; Cuba, Havana; Cyprus, Nicosia; Denmark, Copenhagen; "
    "Ecuador, Quito; Egypt, Cairo; Eritrea, Asmara; Estonia, Tallinn; Ethiopia, Addis Ababa; "
    "Fiji, Suva; Finland, Helsinki; France, Paris; Georgia, Tbilisi; Germany, Berlin; "
    "Ghana, Accra; Greece, Athens; Guinea, Conakry; Haiti, Port-au-Prince; "
    "Honduras, Tegucigalpa; Hungary, Budapest; Iceland, Reykjavik; India, New Delhi; "
    "Indonesia, Jakarta; Iran, Tehran; Iraq, Baghdad; Ireland, Dublin; Italy, Rome; "
    "Jamaica, Kingston; Japan, Tokyo; Jordan, Amman; Kazakhstan, Astana; Kenya, Nairobi; "
    "Kyrgyzstan, Bishkek; Laos, Vientiane; Latvia, Riga; Lebanon, Beirut; Liberia, Monrovia; "
    "Libya, Tripoli; Lithuania, Vilnius; Madagascar, Antananarivo; Malawi, Lilongwe; "
    "Malaysia, Kuala Lumpur; Mali, Bamako; Malta, Valletta; Mauritania, Nouakchott; "
    "Moldova, Chisinau; Mongolia, Ulaanbaatar; Morocco, Rabat; Mozambique, Maputo; "
    "Namibia, Windhoek; Nepal, Kathmandu; New Zealand, Wellington; Nicaragua, Managua; "
    "Niger, Niamey; Nigeria, Abuja; North Korea, Pyongyang; Norway, Oslo; Oman, Muscat; "
    "Pakistan, Islamabad; Paraguay, Asuncion; Peru, Lima; Philippines, Manila; Poland, Warsaw; "
    "Portugal, Lisbon; Qatar, Doha; Romania, Bucharest; Russia, Moscow; Rwanda, Kigali; "
    "Saudi Arabia, Riyadh; Senegal, Dakar; Serbia, Belgrade; Sierra Leone, Freetown; "
    "Slovakia, Bratislava; Slovenia, Ljubljana; Somalia, Mogadishu; South Korea, Seoul; "
    "Spain, Madrid; Sudan, Khartoum; Sweden, Stockholm; Syria, Damascus; Tajikistan, Dushanbe; "
    "Thailand, Bangkok; Togo, Lome; Tunisia, Tunis; Turkey, Ankara; Turkmenistan, Ashgabat; "
    "Uganda, Kampala; Ukraine, Kyiv; Uruguay, Montevideo; Uzbekistan, Tashkent; "
    "Venezuela, Caracas; Vietnam, Hanoi; Yemen, Sanaa; Zambia, Lusaka; Zimbabwe, Harare"
)
_TEMPLATE = "The capital of {country} is {capital}."


def capital_statements(seed: int = 0) -> tuple[Task, list[int]]:
    """Return statements about capitals with the labels "true" and "false", and their groups.

    Two countries exchange their capitals in the false statements. So each country and each capital
    is in one true and one false statement, both of one group, and words alone tell nothing.

    Args:
        seed: seed of the pairs of countries.

    Returns:
        The task, and the group of each statement: the number of its pair of countries. All four
        statements of a pair belong on one side of a split.
    """
    known = [entry.split(", ") for entry in _CAPITALS.split("; ")]
    random.Random(seed).shuffle(known)
    texts: list[str] = []
    labels: list[str] = []
    for first, second in zip(known[::2], known[1::2], strict=True):
        for (country, capital), (other, _) in ((first, second), (second, first)):
            texts += [_TEMPLATE.format(country=name, capital=capital) for name in (country, other)]
            labels += ["true", "false"]
    return Task("truth", texts, labels), [number // 4 for number in range(len(texts))]
