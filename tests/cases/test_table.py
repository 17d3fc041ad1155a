"""Every row of the tables "What happens to ..." of docs/reading.md names a kind that a test of this folder covers."""

import re
from pathlib import Path

HERE = Path(__file__).parent
# The first cell of a row begins with this -> file and test.
ROWS = {
    "animated PNG or WebP": "test_images::test_every_kind_is_read_alike",
    "BMP other than": "test_images::test_every_kind_is_read_alike",
    "CMYK JPEG without": "test_images::test_every_kind_is_read_alike",
    "JPEG with junk between markers": "test_images::test_a_run_of_nothing_but_such_files_trains",
    "JPEG with junk before its end": "test_images::test_strict_names_harmless_bytes_too",
    "JPEG with bytes left over": "../data/test_jpeg_check::test_pixels_left_over_after_damage_are_told_from_junk",
    "JPEG with a stray marker": "test_images::test_what_cannot_be_read_is_named_in_words_by_all",
    "several pictures in one JPEG": "test_images::test_every_kind_is_read_alike",
    "PNG with megabytes": "test_images::test_every_kind_is_read_alike",
    "PNG with a wrong checksum of text": "test_images::test_every_kind_is_read_alike",
    "PNG with a wrong checksum of pixels": "test_images::test_fix_index_stores_which_decoder_reads_a_file",
    "PNG with a wrong checksum of its header": "test_images::test_what_cannot_be_read_is_named_in_words_by_all",
    "lossless or hierarchical": "test_images::test_what_cannot_be_read_is_named_in_words_by_all",
    "JPEG at which libjpeg stops": "test_images::test_what_cannot_be_read_is_named_in_words_by_all",
    "more pixels than": "test_images::test_the_limit_of_pixels_holds_everywhere",
    "strip of 60,000": "test_memory::test_a_strip_takes_no_more_than_its_result",
    "small file that claims": "test_memory::test_a_small_file_that_claims_many_pixels_is_refused_before_it_is_decoded",
    "file of more than 16": "test_memory::test_a_file_far_larger_than_its_pixels_is_refused_before_it_is_read",
    "no memory left": "test_memory::test_a_memory_error_names_the_file",
    "unreadable image in an evaluation": "test_memory::test_unreadable_images_are_left_out_of_an_evaluation",
    "CLEVR: output of its generator": "test_clevr::test_the_generator_s_output_is_read",
    "CLEVR: scene with another": "test_clevr::test_scenes_without_a_label_are_counted_and_named",
    "tar with a damaged, zeroed or cut header": "test_tars::test_a_damaged_tar_is_refused_with_the_byte",
    "tar that ends at a member's border": "test_tars::test_an_interrupted_writer_s_tar_is_accepted_on_request",
    "tar that ends in more zeros": "test_tars::test_a_zeroed_tail_is_no_padding",
    "tar whose last member is zeroed": "test_tars::test_what_no_reader_can_know",
    "tars glued together |": "test_tars::test_a_damaged_tar_is_refused_with_the_byte",
    "tars glued together without": "test_tars::test_what_no_reader_can_know",
    "long name": "test_tars::test_a_damaged_long_name_is_refused_where_its_header_repeats_it",
    "tars without images": "test_tars::test_tars_without_images_say_what_they_hold",
    "tars in several folders": "test_classes::test_folders_above_tars_are_no_classes",
    "sparse members": "test_tars::test_sparse_members_are_named_and_the_others_have_their_own_bytes",
    "hard links and symlinks": "test_tars::test_links_count_as_in_the_unpacked_folder",
    "`./`, `//`, leading": "test_tars::test_names_are_those_of_the_unpacked_folder",
    "`..` in a member's name": "test_tars::test_names_are_those_of_the_unpacked_folder",
    "compressed tar": "test_tars::test_a_compressed_tar_names_the_command_that_helps",
    "tar of tars": "test_tars::test_a_tar_of_tars_says_so",
    "two `.cls` files": "test_classes::test_two_classes_for_one_key_do_not_mix",
    "classes that differ only": "test_classes::test_what_is_said_about_classes",
    "the same tar": "test_tars::test_the_same_tar_under_two_names_is_named",
    "empty `.cls` file": "test_classes::test_two_classes_for_one_key_do_not_mix",
    "files with other endings": "test_classes::test_files_with_other_endings_are_counted",
    "list with a byte-order mark": "test_lists::test_harmless_differences_are_read",
    "list with zero bytes": "test_lists::test_what_is_not_understood_is_refused_with_the_line",
    "quote that is not closed": "test_lists::test_what_is_not_understood_is_refused_with_the_line",
    "image with two labels": "test_lists::test_what_is_not_understood_is_refused_with_the_line",
    "image listed twice": "test_lists::test_an_image_listed_twice_counts_twice_and_is_reported",
    "list in UTF-16": "test_lists::test_what_is_not_understood_is_refused_with_the_line",
    "plain list with labels": "test_lists::test_what_is_not_understood_is_refused_with_the_line",
    "table without `path`": "test_lists::test_what_is_not_understood_is_refused_with_the_line",
    "list for `--list`": "test_lists::test_the_published_list_fits_every_source",
}


def test_every_row_is_tested():
    page = (HERE.parents[1] / "docs" / "reading.md").read_text()
    tables = re.findall(r"## What happens to .*?\n\n.*?(\n\|.*?)\n\n", page, re.DOTALL)
    rows = [line.split("|")[1].strip() + " |" for table in tables for line in table.strip().splitlines()[2:]]
    assert rows and all(sum(row.startswith(kind) for kind in ROWS) == 1 for row in rows), rows
    assert all(any(row.startswith(kind) for row in rows) for kind in ROWS)
    for test in ROWS.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (HERE / f"{file}.py").read_text(), test
