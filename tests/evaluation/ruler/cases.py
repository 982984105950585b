"""A hundred answers with the scores that RULER's definition gives them, worked out by hand.

Each line: metric (``all`` or ``part``), what the model wrote, the references, the score.
"""

from __future__ import annotations

A, P = "string_match_all", "string_match_part"
FOUR = ["1111111", "2222222", "3333333", "4444444"]
VARS = ["ABCDE", "FGHIJ", "KLMNO", "PQRST", "UVWXY"]
TEN = ["tree", "house", "river", "stone", "cloud", "apple", "train", "lamp", "door", "ship"]
WORDS = ["abcdef", "ghijkl", "mnopqr"]

CASES: list[tuple[str, str, list[str], float]] = [
    # One number: in or not, wherever it stands.
    (A, "1234567", ["1234567"], 1.0),
    (A, " 1234567.", ["1234567"], 1.0),
    (A, "The number is 1234567, as the text says.", ["1234567"], 1.0),
    (A, "x1234567y", ["1234567"], 1.0),
    (A, "01234567", ["1234567"], 1.0),
    (A, "123456", ["1234567"], 0.0),
    (A, "1234568", ["1234567"], 0.0),
    (A, "1,234,567", ["1234567"], 0.0),
    (A, "1234 567", ["1234567"], 0.0),
    (A, "", ["1234567"], 0.0),
    (A, "   \n\t ", ["1234567"], 0.0),
    (A, "7654321", ["1234567"], 0.0),
    (A, "1234567 1234567", ["1234567"], 1.0),
    (A, "one two three", ["1234567"], 0.0),
    (A, "12345671234567", ["1234567"], 1.0),
    # Control characters part what stands on their two sides.
    (A, "123\n4567", ["1234567"], 0.0),
    (A, "123\x004567", ["1234567"], 0.0),
    (A, "\x00\x01\x021234567\x1f", ["1234567"], 1.0),
    (A, "1234567\x0b\x0c", ["1234567"], 1.0),
    (A, "a\tb", ["a\nb"], 1.0),
    (A, "a\tb", ["a\tb"], 0.0),
    (A, "a b", ["a b"], 1.0),
    (A, "a\r\nb", ["a\n\nb"], 1.0),
    (A, "\x7f1234567", ["1234567"], 1.0),
    (A, "a\x7fb", ["a\x7fb"], 1.0),
    # Letters in either case; uuids.
    (A, "3F2504E0-4F89-41D3-9A0C-0305E82C3301", ["3f2504e0-4f89-41d3-9a0c-0305e82c3301"], 1.0),
    (A, "3f2504e0-4f89-41d3-9a0c-0305e82c3301", ["3F2504E0-4F89-41D3-9A0C-0305E82C3301"], 1.0),
    (A, "3f2504e04f8941d39a0c0305e82c3301", ["3f2504e0-4f89-41d3-9a0c-0305e82c3301"], 0.0),
    (A, "3f2504e0-4f89-41d3-9a0c-0305e82c330", ["3f2504e0-4f89-41d3-9a0c-0305e82c3301"], 0.0),
    (A, "STRASSE", ["strasse"], 1.0),
    (A, "Straße", ["STRASSE"], 0.0),
    (A, "ÉCOLE", ["école"], 1.0),
    (A, "ΣΑΣ", ["σας"], 1.0),
    (A, "naïve", ["naive"], 0.0),
    (A, "quiet-harbour", ["Quiet-Harbour"], 1.0),
    # Four values: a quarter each, in any order, each once.
    (A, "1111111, 2222222, 3333333, and 4444444", FOUR, 1.0),
    (A, "4444444 3333333 2222222 1111111", FOUR, 1.0),
    (A, "1111111, 2222222, 3333333", FOUR, 0.75),
    (A, "1111111 and 4444444", FOUR, 0.5),
    (A, "3333333", FOUR, 0.25),
    (A, "3333333 3333333 3333333 3333333", FOUR, 0.25),
    (A, "5555555 6666666", FOUR, 0.0),
    (A, "1111111222222233333334444444", FOUR, 1.0),
    (A, "111111 222222 333333 444444", FOUR, 0.0),
    (A, "1111111, 222222, 3333333, 444444", FOUR, 0.5),
    (A, "11111112222222", FOUR, 0.5),
    (A, "1111111\n2222222\n3333333\n4444444", FOUR, 1.0),
    (A, "", FOUR, 0.0),
    # References that repeat, contain each other or are empty count as upstream counts them.
    (A, "12", ["1", "2", "12"], 1.0),
    (A, "1 2", ["1", "2", "12"], 2 / 3),
    (A, "7", ["7", "7"], 1.0),
    (A, "8", ["7", "7"], 0.0),
    (A, "7", ["7", "8", "7"], 2 / 3),
    (A, "anything", [""], 1.0),
    (A, "", [""], 1.0),
    (A, "anything", ["", "x"], 0.5),
    # Chains of five variables.
    (A, "ABCDE FGHIJ KLMNO PQRST UVWXY", VARS, 1.0),
    (A, "abcde, fghij, klmno, pqrst, uvwxy", VARS, 1.0),
    (A, "ABCDE, FGHIJ, KLMNO, PQRST", VARS, 0.8),
    (A, "ABCDE FGHIJ KLMNO", VARS, 0.6),
    (A, "FGHIJ UVWXY", VARS, 0.4),
    (A, "VAR ABCDE = 12345", VARS, 0.2),
    (A, "ABCD FGHI KLMN PQRS UVWX", VARS, 0.0),
    (A, "ABCDEFGHIJ", VARS, 0.4),
    (A, "VWXYZ", VARS, 0.0),
    # Ten common words.
    (
        A,
        "1. tree 2. house 3. river 4. stone 5. cloud 6. apple 7. train 8. lamp 9. door 10. ship",
        TEN,
        1.0,
    ),
    (A, "1. tree 2. house 3. river 4. stone 5. cloud 6. apple 7. train 8. lamp 9. door", TEN, 0.9),
    (A, "tree house river stone cloud", TEN, 0.5),
    (A, "trees houses rivers", TEN, 0.3),
    (A, "Tree", TEN, 0.1),
    (A, "a treehouse", TEN, 0.2),
    (A, "lam doo shi", TEN, 0.0),
    (A, "ship, door, lamp, train, apple, cloud, stone, river", TEN, 0.8),
    # Three frequent words.
    (A, "abcdef, ghijkl, mnopqr", WORDS, 1.0),
    (A, "abcdef ghijkl", WORDS, 2 / 3),
    (A, "... mnopqr", WORDS, 1 / 3),
    (A, "abcde ghijk mnopq", WORDS, 0.0),
    # Questions: any answer will do.
    (P, "France", ["France"], 1.0),
    (P, "in france.", ["France"], 1.0),
    (P, "It is Germany", ["France"], 0.0),
    (P, "the 10th century", ["10th and 11th centuries", "10th", "in the 10th century"], 1.0),
    (P, "in the 11th century", ["10th and 11th centuries", "10th"], 0.0),
    (P, "10th and 11th centuries", ["10th and 11th centuries", "in the 10th century"], 1.0),
    (P, "yes", ["no"], 0.0),
    (P, "no", ["no"], 1.0),
    (P, "I do not know", ["no"], 1.0),
    (P, "", ["no", "yes"], 0.0),
    (P, "a b c", ["x", "y", "c"], 1.0),
    (P, "a b c", ["x", "y", "z"], 0.0),
    (P, "Normandy\n\nQuestion: what else?", ["Normandy"], 1.0),
    (P, "Norman\ndy", ["Normandy"], 0.0),
    (P, "The Norse", ["Norse", "Danes", "Norway"], 1.0),
    (P, "Nor se", ["Norse"], 0.0),
    (P, "1,000", ["1000"], 0.0),
    (P, "$1,000 dollars", ["1,000"], 1.0),
    (P, "Obama (Barack)", ["Barack Obama"], 0.0),
    (P, "BARACK OBAMA", ["Barack Obama"], 1.0),
    (P, "北京市", ["北京"], 1.0),
    (P, "anything", [""], 1.0),
    (P, "1111111", FOUR, 1.0),
]
