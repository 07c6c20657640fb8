// safetensors: round trips, the format's own layout, and a line for every way in which a header can lie.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <numeric>

#include "fedpdpo/io/safetensors.hpp"
#include "safetensors_builder.hpp"
#include "support/test_support.hpp"

namespace fedpdpo {
namespace {

using test::read_text;
using test::safetensors;
using test::TemporaryFolder;
using test::write_text;

class Safetensors : public testing::Test {
 protected:
  std::filesystem::path file() const { return folder_ / "model.safetensors"; }

  SafetensorsFile open(std::string_view header, std::string_view data = "") const {
    write_text(file(), safetensors(header, data));
    return SafetensorsFile(file());
  }

  template <class T>
  void expect_round_trip(const std::vector<T>& values, std::vector<std::int64_t> shape, std::string_view type) const {
    const TensorToWrite tensor = tensor_to_write<T>("x", values, shape);
    const std::string hash = write_safetensors(file(), std::span(&tensor, 1));
    EXPECT_EQ(hash, sha256_file(file()));
    const SafetensorsFile read(file());
    if (shape.empty()) shape = {static_cast<std::int64_t>(values.size())};
    EXPECT_EQ(stored_type_name(read.at("x").type), type);
    EXPECT_EQ(read.at("x").shape, shape);
    const auto found = read.read<T>("x", shape);
    EXPECT_TRUE(std::ranges::equal(found, values));
    EXPECT_EQ(read.at("x").num_elements(), static_cast<std::int64_t>(values.size()));
  }

  TemporaryFolder folder_;
};

TEST_F(Safetensors, RoundTripOfEveryType) {
  expect_round_trip<float>({1.5f, -2, 3, 4, 5, 6}, {2, 3}, "F32");
  expect_round_trip<double>({0.1, 1e300}, {}, "F64");
  expect_round_trip<std::int64_t>({INT64_MIN, INT64_MAX}, {2, 1, 1}, "I64");
  expect_round_trip<std::int32_t>({INT32_MIN, 0, 7}, {}, "I32");
  expect_round_trip<std::uint64_t>({UINT64_MAX}, {}, "U64");
  expect_round_trip<std::uint32_t>({UINT32_MAX, 1, 2}, {3}, "U32");
  expect_round_trip<std::uint8_t>({0, 255, 3, 4, 5}, {5, 1}, "U8");
  expect_round_trip<float>({}, {0, 4}, "F32");
}

TEST_F(Safetensors, TypesHaveTheirNamesAndSizes) {
  const std::map<std::string, std::size_t> sizes{{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8},
                                                 {"I32", 4}, {"U64", 8}, {"U32", 4}, {"U8", 1},   {"BOOL", 1}};
  for (const auto& [name, size] : sizes) {
    const std::string data(3 * size, '\1');
    const SafetensorsFile read =
        open(R"({"x":{"dtype":")" + name + R"(","shape":[3],"data_offsets":[0,)" + std::to_string(data.size()) + "]}}",
             data);
    EXPECT_EQ(stored_type_name(read.at("x").type), name);
    EXPECT_EQ(stored_type_size(read.at("x").type), size);
    EXPECT_EQ(read.at("x").num_elements(), 3);
  }
}

TEST_F(Safetensors, SeveralTensorsMetadataAndOddNames) {
  const std::vector<float> a{1, 2, 3};
  const std::vector<std::uint8_t> odd{7};  // what follows it is misaligned in the file
  const std::vector<double> b{0.5, 0.25};
  const std::vector<TensorToWrite> tensors{tensor_to_write<float>("lora \"A\"\n\\", a),
                                           tensor_to_write<std::uint8_t>("odd", odd), tensor_to_write<double>("b", b)};
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"quote", "\"\n\xC3\xA4"}};
  const std::string hash = write_safetensors(file(), tensors, metadata);
  EXPECT_EQ(hash, sha256_file(file()));
  const SafetensorsFile read(file());
  EXPECT_EQ(read.tensors().size(), 3u);
  EXPECT_TRUE(std::ranges::equal(read.read<float>("lora \"A\"\n\\"), a));
  EXPECT_TRUE(std::ranges::equal(read.read<std::uint8_t>("odd"), odd));
  EXPECT_TRUE(std::ranges::equal(read.read<double>("b"), b));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(read.read<double>("b").data()) % alignof(double), 0u);
  EXPECT_TRUE(std::ranges::equal(read.metadata(), metadata));
  EXPECT_NO_THROW(test::touch_everything(read));
}

TEST_F(Safetensors, AMovedFileKeepsItsTensors) {
  const std::vector<float> a{1, 2, 3};
  const TensorToWrite tensor = tensor_to_write<float>("a", a);
  write_safetensors(file(), std::span(&tensor, 1));
  SafetensorsFile first(file());
  const SafetensorsFile moved(std::move(first));
  EXPECT_TRUE(std::ranges::equal(moved.read<float>("a"), a));
  EXPECT_EQ(moved.path(), file());
}

TEST_F(Safetensors, NoTensorsAtAll) {
  write_safetensors(file(), {});
  EXPECT_TRUE(SafetensorsFile(file()).tensors().empty());
  EXPECT_EQ(read_text(file()), safetensors("{}      ", ""));
}

TEST_F(Safetensors, TheBytesAreTheFormats) {
  const std::vector<float> a{1, 2};
  const TensorToWrite tensor = tensor_to_write<float>("a", a, {1, 2});
  write_safetensors(file(), std::span(&tensor, 1), {{"k", "v"}});
  const std::string text = read_text(file());
  const std::string header = R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[1, 2],"data_offsets":[0,8]}})";
  const std::string padding((8 - header.size() % 8) % 8, ' ');
  EXPECT_EQ(text, safetensors(header + padding, std::string("\0\0\x80\x3f\0\0\0\x40", 8)));
}

TEST_F(Safetensors, SameTensorsSameBytes) {
  std::vector<double> values(5000);
  std::iota(values.begin(), values.end(), 0.0);
  const TensorToWrite tensor = tensor_to_write<double>("x", values);
  const std::string first = write_safetensors(folder_ / "1", std::span(&tensor, 1), {{"b", "2"}, {"a", "1"}});
  const std::string second = write_safetensors(folder_ / "2", std::span(&tensor, 1), {{"a", "1"}, {"b", "2"}});
  EXPECT_EQ(first, second);
  EXPECT_EQ(read_text(folder_ / "1"), read_text(folder_ / "2"));
}

TEST_F(Safetensors, AFailedWriteLeavesTheOldFile) {
  write_text(file(), "old");
  const std::vector<float> values(1'000'000, 1.f);
  const TensorToWrite tensor = tensor_to_write<float>("x", values);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1'000'000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(write_safetensors(file(), std::span(&tensor, 1)), InputError);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_text(file()), "old");
  EXPECT_EQ(folder_.contents(), std::vector<std::string>{"model.safetensors"});
}

TEST_F(Safetensors, WritingRefusesContradictions) {
  const std::vector<float> a{1, 2};
  const auto write = [&](const std::vector<TensorToWrite>& tensors) { write_safetensors(file(), tensors); };
  EXPECT_CONTRACT_VIOLATION(write({tensor_to_write<float>("a", a, {3})}), "differ from its shape");
  EXPECT_CONTRACT_VIOLATION(write({tensor_to_write<float>("a", a, {-1, -2})}), "differ from its shape");
  EXPECT_CONTRACT_VIOLATION(write({tensor_to_write<float>("a", a), tensor_to_write<float>("a", a)}), "twice");
  EXPECT_CONTRACT_VIOLATION(write({tensor_to_write<float>("__metadata__", a)}), "reserved");
  EXPECT_TRUE(folder_.contents().empty());
}

TEST_F(Safetensors, MissingTensorsAndOtherTypesOrShapes) {
  const std::vector<float> a{1, 2, 3, 4};
  const TensorToWrite tensor = tensor_to_write<float>("a", a, {2, 2});
  write_safetensors(file(), std::span(&tensor, 1));
  const SafetensorsFile read(file());
  EXPECT_TRUE(read.contains("a"));
  EXPECT_FALSE(read.contains("b"));
  EXPECT_INPUT_ERROR(read.at("b"), "model.safetensors: tensor b: expected it to be there, found none");
  EXPECT_INPUT_ERROR(read.read<double>("a"), "tensor a: expected F64 of any shape, found F32 [2, 2]");
  const std::vector<std::int64_t> shape{4, 1};
  EXPECT_INPUT_ERROR(read.read<float>("a", shape), "expected F32 [4, 1], found F32 [2, 2]");
}

TEST_F(Safetensors, ReadsHeadersThatOthersWrite) {
  // No padding (so the data is misaligned), reordered keys, unknown keys, tensors out of order, empty tensors.
  const SafetensorsFile read = open(
      R"({"b":{"shape":[2],"data_offsets":[4,12],"dtype":"F32","more":{"x":1}}, "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0,1000000],"data_offsets":[4,4]}})",
      std::string("\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40", 12));
  EXPECT_EQ(read.read<float>("a")[0], 1.f);
  EXPECT_EQ(read.read<float>("b")[0], 2.f);
  EXPECT_EQ(read.read<float>("b")[1], 3.f);
  EXPECT_EQ(read.at("e").num_elements(), 0);
}

TEST_F(Safetensors, TooShortOrTooLongAHeader) {
  const auto refuse = [&](const std::string& bytes, const char* line) {
    write_text(file(), bytes);
    EXPECT_INPUT_ERROR(SafetensorsFile{file()}, line);
  };
  refuse("", "expected a safetensors file, found 0 bytes");
  refuse("1234567", "found 7 bytes");
  refuse(test::length_prefix(0), "begins with '{'");
  refuse(test::length_prefix(3) + "{}", "header: expected a length of at most 2 bytes, found 3");
  refuse(test::length_prefix(UINT64_MAX) + "{}", "found 18446744073709551615");
  refuse(test::length_prefix(UINT64_MAX - 7) + "{}", "at most 2 bytes");
  // A sparse file longer than the format's bound.
  write_text(file(), test::length_prefix(150'000'000) + "{}");
  std::filesystem::resize_file(file(), 200'000'000);
  EXPECT_INPUT_ERROR(SafetensorsFile{file()}, "at most 100000000 bytes, found 150000000");
}

TEST_F(Safetensors, HeadersThatLie) {
  struct Case {
    const char* header;
    std::size_t data;
    const char* line;
  };
  const Case cases[] = {
      {"[]", 0, "begins with '{'"},
      {" {}", 0, "begins with '{'"},
      {"{}x", 0, "valid JSON"},
      {"{\"a\":\"\xff\"}", 0, "valid JSON"},
      {"{\"a\":[[[[1]]]]}", 0, "nesting"},
      {R"({"a":1})", 0, "tensor a: expected an object"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "tensor a: expected dtype, found none"},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "expected shape, found none"},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "expected data_offsets, found none"},
      {R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, "found F33"},
      {R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4, "dtype as a string, found 7"},
      {R"({"a":{"dtype":"F32","shape":{},"data_offsets":[0,4]}})", 4, "shape as a list"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "non-negative integers, found [-1]"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "non-negative integers"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4, "non-negative integers"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "at most 2^63"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0, "at most 2^63"},
      {R"({"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}})", 0, "at most 2^63"},
      {R"({"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})", 0, "at most 2^63"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "data_offsets [begin, end]"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "data_offsets [begin, end]"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4, "data_offsets [begin, end]"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0.0,4]}})", 4, "data_offsets [begin, end]"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "within the file's 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "within the file's 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "8 bytes for F32 [2], found 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "data from byte 0, found a hole at byte 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "data: expected 4 bytes, found 5 bytes"},
      {"{}", 1, "data: expected 0 bytes, found 1 bytes"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "tensor b: expected data from byte 8, found an overlap at byte 4"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "'a' twice"},
      {R"({"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}})", 4, "'dtype' twice"},
      {R"({"__metadata__":7})", 0, "__metadata__: expected an object of strings"},
      {R"({"__metadata__":{"k":7}})", 0, "__metadata__.k: expected a string, found 7"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "'k' twice"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.header);
    EXPECT_INPUT_ERROR(open(c.header, std::string(c.data, '\0')), c.line);
  }
}

TEST_F(Safetensors, MetadataThatIsNoUtf8IsWrittenAllTheSame) {
  write_safetensors(file(), {}, {{"path", "caf\xe9"}});
  EXPECT_EQ(SafetensorsFile(file()).metadata().at("path"), "caf\xEF\xBF\xBD");
}

}  // namespace
}  // namespace fedpdpo
